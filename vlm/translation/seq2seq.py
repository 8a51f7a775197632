"""Translation models with an encoder: NLLB, M2M-100, MADLAD-400, OPUS-MT, T5."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from shards.errors import BadInput
from shards.translate.languages import LANGUAGES
from vlm.translation.checkpoint import Checkpoint


@dataclass(frozen=True)
class Direction:
    """How a model is told the two languages: a prefix of the text, or codes with a first target token."""

    prefix: str = ""
    source_code: str | None = None
    first_token: int | None = None


def find_direction(checkpoint: Checkpoint, source: str, target: str) -> Direction:
    """What the model's configuration and vocabulary ask for; BadInput when they know no such direction."""
    vocabulary, config = checkpoint.tokenizer.get_vocab(), checkpoint.model.config
    codes = [LANGUAGES[code].flores if code in LANGUAGES else code for code in (source, target)]
    if config.model_type == "marian":
        return _marian(checkpoint, vocabulary, target, codes[1])
    if all(code in vocabulary for code in codes):
        return Direction("", codes[0], vocabulary[codes[1]])
    if f"__{source}__" in vocabulary and f"__{target}__" in vocabulary:
        return Direction("", source, vocabulary[f"__{target}__"])
    if f"<2{target}>" in vocabulary:
        return Direction(f"<2{target}> ")
    tasks = getattr(config, "task_specific_params", None)
    task = tasks.get(f"translation_{source}_to_{target}") if isinstance(tasks, dict) else None
    if isinstance(task, dict) and isinstance(task.get("prefix"), str):
        return Direction(task["prefix"])
    raise BadInput(
        f"translate.model {checkpoint.identity}: neither language codes nor a prefix for {source} → {target} stand in "
        f"its vocabulary or in task_specific_params.translation_{source}_to_{target}.prefix of its config.json"
    )


def _marian(checkpoint: Checkpoint, vocabulary: dict[str, int], target: str, flores: str) -> Direction:
    """OPUS-MT: one direction, or several target languages with a code such as >>rus<< before the text."""
    known = getattr(checkpoint.tokenizer, "target_lang", None)
    if known in LANGUAGES and known != target:
        raise BadInput(f"translate.model {checkpoint.identity} translates into {known!r}, not {target!r}")
    marks = [mark for mark in (f">>{target}<<", f">>{flores.split('_')[0]}<<") if mark in vocabulary]
    return Direction(f"{marks[0]} " if marks else "")


class Seq2Seq:
    """Greedy or beam search, as the model's own generation settings say; never sampled."""

    def __init__(self, checkpoint: Checkpoint, direction: Direction, max_new_tokens: int) -> None:
        self.checkpoint, self.direction = checkpoint, direction
        self.tokenizer = checkpoint.tokenizer
        limit = checkpoint.max_length
        self.max_new_tokens = min(max_new_tokens, limit - 1) if limit else max_new_tokens
        self.settings = self._settings()
        ends = self.settings.eos_token_id
        self.ends = torch.tensor([ends] if isinstance(ends, int) else ends, device=checkpoint.device)

    def _settings(self) -> GenerationConfig:
        settings = copy.deepcopy(self.checkpoint.model.generation_config)
        settings.update(
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            max_length=None,
            max_new_tokens=self.max_new_tokens,
            forced_bos_token_id=self.direction.first_token or settings.forced_bos_token_id,
            # would turn a cut-off translation into one that looks whole
            forced_eos_token_id=None,
        )
        return settings

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with all that the model wants around it."""
        if self.direction.source_code:  # the way back may share the tokenizer
            self.tokenizer.src_lang = self.direction.source_code
        return list(self.tokenizer(self.direction.prefix + text).input_ids)

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether the model has positions for it."""
        return self.checkpoint.max_length is None or len(ids) <= self.checkpoint.max_length

    def batches(self, prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
        """Indices of prompts that go together: neighbours in length."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
        """(text, whether it came to its end) of each prompt."""
        padded = self.tokenizer.pad({"input_ids": [list(ids) for ids in prompts]}, return_tensors="pt")
        inputs = {name: padded[name].to(self.checkpoint.device) for name in ("input_ids", "attention_mask")}
        # not as an argument of `generate`: what is None there would be taken from the model's own settings after all
        self.checkpoint.model.generation_config = self.settings
        output = self.checkpoint.model.generate(**inputs)
        # the first token starts the decoder; some models take the end token for it
        finished = torch.isin(output[:, 1:], self.ends).any(1).tolist()
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return list(zip(texts, finished, strict=True))
