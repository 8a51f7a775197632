"""Where a new language's tokens start: at the embeddings of the tokens they translate.

Parallel texts (a translated set carries its originals) are aligned token by token with IBM Model 1; a new token
starts at the mean of the old tokens it is aligned to, weighted by how often. Sources: Brown et al., "The
Mathematics of Statistical Machine Translation" (1993); Minixhofer et al., "WECHSEL" (2022) for starting embeddings
from a bilingual lexicon.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from transformers import PreTrainedTokenizerBase

from shards.dataset import ShardDataset
from shards.sample import Text

Pair = tuple[tuple[int, ...], tuple[int, ...]]
ITERATIONS = 20


def parallel_texts(dataset: ShardDataset) -> list[tuple[str, str]]:
    """Distinct (original, translated) texts of a translated set, sorted; empty where originals were not kept."""
    return sorted({pair for i in range(len(dataset)) for pair in _sample_texts(dataset, i)})


def _sample_texts(dataset: ShardDataset, index: int) -> Iterator[tuple[str, str]]:
    sample = dataset.read(index)
    originals = (sample.original or {}).get("messages", [])
    for before, after in zip(originals, sample.messages, strict=False):
        for old, new in zip(before["content"], after.content, strict=True):
            if isinstance(new, Text):
                yield old["text"], new.text


def align(pairs: Sequence[Pair], new_ids: Iterable[int]) -> dict[int, dict[int, float]]:
    """`{new id: {old id: share}}` from (original, translated) token ids; shares of a new id add up to 1.

    New ids that occur in no pair are left out.
    """
    new = set(new_ids)
    probability: dict[tuple[int, int], float] = defaultdict(lambda: 1.0)
    counts: dict[tuple[int, int], float] = {}
    for _ in range(ITERATIONS):
        counts = defaultdict(float)
        totals: dict[int, float] = defaultdict(float)
        for source, target in pairs:
            for t in target:
                norm = sum(probability[t, s] for s in source)
                for s in source:
                    share = probability[t, s] / norm
                    counts[t, s] += share
                    totals[s] += share
        probability = defaultdict(float, {(t, s): count / totals[s] for (t, s), count in counts.items()})
    shares: dict[int, dict[int, float]] = defaultdict(dict)
    for (t, s), count in counts.items():
        if t in new:
            shares[t][s] = count
    return {t: {s: c / sum(found.values()) for s, c in found.items()} for t, found in shares.items()}


@torch.no_grad()
def start_at_translations(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]], new_ids: Sequence[int]
) -> int:
    """Set the trained rows of new tokens in embeddings and head; returns how many tokens were aligned."""
    # a text stands behind a space or at the start of a line, where its first word is another token
    forms = [(space + old, space + new) for old, new in texts for space in ("", " ")]
    pairs = [(_encode(tokenizer, old), _encode(tokenizer, new)) for old, new in forms]
    aligned = align(pairs, new_ids)
    for layer in (m for m in model.modules() if isinstance(m, TrainableTokensLayer) and m.tied_adapter is None):
        rows, old_rows = layer.trainable_tokens_delta["default"], layer.base_layer.weight
        assert isinstance(old_rows, torch.Tensor)
        for row, token in enumerate(layer.token_indices["default"]):
            if token in aligned:
                old_ids, shares = zip(*aligned[token].items(), strict=True)
                weights = torch.tensor(shares, dtype=rows.dtype)
                rows[row] = weights @ old_rows[list(old_ids)].to(rows.dtype)
    return len(aligned)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
