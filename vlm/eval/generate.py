"""Greedy answers to many questions about few images: image and prompt prefix once.

Its key/value cache forked by question.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from shards.errors import BadInput
from shards.sample import ImagePart, Message, Sample, Text
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.template import IMAGE

# images that the tower, and their tokens that the language model, gets in one call
_AT_ONCE = 32


@dataclass(frozen=True)
class Request:
    """One question: its prompt is `prefix` (ends with the image's views) + `suffix`; both are token ids."""

    sample: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


class Answerer:
    """Answers questions with a LLaVA model in memory, batched without padding: suffixes of one length go together."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tokeniser: Tokeniser,
        pixels: Pixels,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        self.model, self.tokenizer, self.tokeniser, self.pixels = model.eval(), tokenizer, tokeniser, pixels
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        stop = tokeniser.template.stop
        self.eos = int(tokenizer.convert_tokens_to_ids(stop) if stop else tokenizer.eos_token_id)

    @torch.inference_mode()
    def answer(self, samples: Sequence[Sample], instruction: str = "") -> list[list[str]]:
        """Answers to every question of every sample, in order."""
        views = [None if s.image is None else self.pixels.views(s.image) for s in samples]
        requests = [r for i, s in enumerate(samples) for r in self._requests(i, s, views[i], instruction)]
        answers: dict[int, str] = {}
        by_prefix: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            by_prefix[request.prefix].append(number)
        # a prefix is as long as its image has views: samples that share one have equally many
        for prefix, numbers in by_prefix.items():
            for owners in self._together(sorted({requests[n].sample for n in numbers}), views):
                cache = self._encode(prefix, [v for i in owners if (v := views[i]) is not None])
                for group in self._groups([n for n in numbers if requests[n].sample in owners], requests):
                    rows = torch.tensor([owners.index(requests[n].sample) for n in group])
                    suffixes = torch.tensor([requests[n].suffix for n in group])
                    texts = self._decode(self._fork(cache, rows), suffixes, len(prefix))
                    answers.update(zip(group, texts, strict=True))
        texts_in_order = iter([answers[n] for n in range(len(requests))])
        return [[next(texts_in_order) for _ in s.questions] for s in samples]

    def _requests(self, index: int, sample: Sample, views: np.ndarray | None, instruction: str) -> Iterator[Request]:
        image = () if views is None else (ImagePart(),)
        count = 0 if views is None else len(views)
        for question in sample.questions:
            text = f"{question.wording}\n{instruction}" if instruction else question.wording
            ids = self.tokeniser.prompt([Message("user", (*image, Text(text)))], max(1, count))
            if ids.count(self.tokeniser.image_id) != count * self.tokeniser.image_tokens:
                raise BadInput(f"sample {sample.key}: question {question.question_id} holds the text {IMAGE}")
            cut = max((i for i, t in enumerate(ids) if t == self.tokeniser.image_id), default=-1) + 1
            if cut == len(ids):
                raise BadInput(f"data.template: {self.tokeniser.template.name} asks no question; answer with another")
            yield Request(index, ids[:cut], ids[cut:])

    def _together(self, owners: list[int], views: Sequence[np.ndarray | None]) -> Iterator[list[int]]:
        """Samples that share a prefix, so many at a time as there is room for their images."""
        first = views[owners[0]]
        step = max(1, _AT_ONCE // (1 if first is None else len(first)))
        yield from (owners[at : at + step] for at in range(0, len(owners), step))

    def _groups(self, numbers: list[int], requests: Sequence[Request]) -> Iterator[list[int]]:
        by_length: dict[int, list[int]] = defaultdict(list)
        for n in numbers:
            by_length[len(requests[n].suffix)].append(n)
        for length in sorted(by_length):
            same = by_length[length]
            yield from (same[i : i + self.batch_size] for i in range(0, len(same), self.batch_size))

    def _encode(self, prefix: tuple[int, ...], views: Sequence[np.ndarray]) -> DynamicCache | None:
        """The cache of a prefix with `views` (n, 3, size, size) of each of several images."""
        if not prefix:
            return None
        device = self.model.device
        images = torch.from_numpy(np.concatenate(views))
        pixels = self.pixels.normalise(images.to(device), self.model.dtype)
        ids = torch.tensor(prefix, device=device).expand(len(views), -1)
        outputs = self.model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        cache: DynamicCache = outputs.past_key_values
        return cache

    def _fork(self, cache: DynamicCache | None, rows: Tensor) -> DynamicCache | None:
        if cache is None:
            return None
        # copied layer by layer, so that a sliding window's count of tokens already dropped comes along
        rows = rows.to(self.model.device)
        fork = copy.copy(cache)
        fork.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in fork.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return fork

    def _decode(self, cache: DynamicCache | None, ids: Tensor, past: int) -> list[str]:
        """Greedy decoding of a batch (n, length) behind `past` cached tokens; each row stops at its end token."""
        ids = ids.to(self.model.device)
        produced: list[Tensor] = []
        alive = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(self.max_new_tokens):
            positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
            outputs = self.model(
                input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache, past = outputs.past_key_values, past + ids.shape[1]
            chosen = outputs.logits[:, -1].argmax(-1)
            produced.append(torch.where(alive, chosen, self.eos))
            alive &= chosen != self.eos
            if not alive.any():
                break
            ids = produced[-1][:, None]
        rows = torch.stack(produced, 1).tolist()
        return [self._text(row) for row in rows]

    def _text(self, ids: list[int]) -> str:
        end = ids.index(self.eos) if self.eos in ids else len(ids)
        text: str = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text.strip()
