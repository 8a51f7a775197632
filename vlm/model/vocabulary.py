"""Vocabulary extension: new byte-level BPE tokens for a new language, old text tokenised as before.

New merges are learned on the new language's text alone and appended after the old ones, so no merge the model was
trained with loses its rank. Source: Cui et al., "Efficient and Effective Text Encoding for Chinese LLaMA and
Alpaca" (2023).
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shards.errors import BadInput


def extend_vocabulary(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], size: int) -> list[int]:
    """Append up to `size` tokens learned on `texts`; returns the new ids. Raises BadInput unless byte-level BPE."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(state["pre_tokenizer"]):
        raise BadInput(f"vocabulary extension needs a byte-level BPE tokenizer, this one is {model['type']}")
    learned = _learn(state["pre_tokenizer"], texts, size)
    old = [tuple(m) for m in model["merges"]]
    merges = [m for m in learned if m not in set(old)]
    next_id = 1 + max([*model["vocab"].values(), *(t["id"] for t in state["added_tokens"])])
    new_ids = []
    for left, right in merges:
        if left + right not in model["vocab"]:
            model["vocab"][left + right] = next_id
            new_ids.append(next_id)
            next_id += 1
    model["merges"] = [list(m) for m in old + merges]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return new_ids


def _learn(pre_tokenizer: object, texts: Iterable[str], size: int) -> list[tuple[str, str]]:
    fresh = Tokenizer(models.BPE())
    fresh.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    # as templates place them: behind a space, or at the start of a line
    fresh.train_from_iterator([form for text in texts for form in (text, f" {text}")], trainer)
    return [(left, right) for left, right in json.loads(fresh.to_str())["model"]["merges"]]
