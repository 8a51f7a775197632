"""Samples to token documents, labelled segment by segment."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shards.errors import BadInput
from shards.sample import ImagePart, Message, Sample
from vlm.data.pieces import DialogueEncoder
from vlm.data.template import ChatTemplate

IGNORE = -100


@dataclass(frozen=True)
class Document:
    """One tokenised sample.

    `input_ids`, `labels` int64 (L,): a label is the *next* token where that token is supervised, else -100.
    `position_ids` int64 (L,). `prefix` tokens at the start are shared by the `segments` after it; a document without
    a shared prefix has prefix 0 and one segment. Lengths add up to L. `images` counts the images it needs.
    """

    key: str
    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    prefix: int
    segments: tuple[int, ...]
    images: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Number of tokens that carry a loss."""
        return int((self.labels != IGNORE).sum())


def silent(key: str) -> Document:
    """One token without a loss: takes part in a step in place of a sample that is not there."""
    zero = np.zeros(1, dtype=np.int64)
    return Document(key, zero, np.full_like(zero, IGNORE), zero, 0, (1,), 0)


class Tokeniser:
    """Turns samples into documents with one tokenizer, one template and one image length.

    `turns="joint"` keeps a dialogue as one causal text, as LLaVA does. `turns="separate"` makes every question
    after the first image a segment of its own behind the shared prefix, so that no answer is read off an earlier
    one. `virtual_tokens` are those that a method puts before every document: a row has room for them, documents do not
    hold them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        image_tokens: int,
        turns: str = "joint",
        max_length: int = 4096,
        virtual_tokens: int = 0,
    ) -> None:
        if turns not in ("joint", "separate"):
            raise BadInput(f"data.turns: {turns!r} is not one of joint, separate")
        self.template, self.image_tokens, self.turns, self.max_length = template, image_tokens, turns, max_length
        self.virtual_tokens = virtual_tokens
        self.tokenizer, self.encoder = tokenizer, DialogueEncoder(tokenizer, template, image_tokens)
        self.image_id = self.encoder.image_id

    @cached_property
    def digest(self) -> str:
        """Identifies everything that a document depends on besides its sample."""
        if isinstance(self.tokenizer, PreTrainedTokenizerFast):
            tokenizer = self.tokenizer.backend_tokenizer.to_str()
        else:
            tokenizer = json.dumps([type(self.tokenizer).__name__, self.tokenizer.get_vocab()], sort_keys=True)
        fields = [tokenizer, asdict(self.template), self.image_tokens, self.turns, self.max_length]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def document(self, sample: Sample, views: int = 1) -> Document:
        """The training document of a sample, cut at `max_length` tokens; the tower sees an image as `views` images."""
        images = views * sum(isinstance(part, ImagePart) for m in sample.messages for part in m.content)
        if self.turns == "separate":
            return self._separate(sample, images, views)
        return self._assemble(sample.key, [], [self.encoder.encode(sample.messages, views=views)], images)

    def prompt(self, messages: Sequence[Message], views: int = 1) -> tuple[int, ...]:
        """Token ids of a dialogue that waits for the assistant, images expanded."""
        return tuple(self.encoder.encode(messages, generation_prompt=True, views=views)[0])

    def _separate(self, sample: Sample, images: int, views: int) -> Document:
        first = sample.messages[0]
        if first.role == "system" or images != views or not isinstance(first.content[0], ImagePart):
            raise BadInput(f"sample {sample.key}: data.turns=separate needs dialogues that open with one image")
        image, turns = first.content[0], []
        for question, answer in zip(sample.messages[::2], sample.messages[1::2], strict=True):
            text = tuple(part for part in question.content if not isinstance(part, ImagePart))
            turns.append(self.encoder.encode([Message("user", (image, *text)), answer], views=views))
        # every turn starts with the same tokens up to and including the image: that is the prefix they share
        prefix = max(i for i, t in enumerate(turns[0][0]) if t == self.image_id) + 1
        segments = [(ids[prefix:], supervised[prefix:]) for ids, supervised in turns]
        return self._assemble(sample.key, turns[0][0][:prefix], segments, images)

    def _assemble(
        self, key: str, prefix: list[int], segments: list[tuple[list[int], list[bool]]], images: int
    ) -> Document:
        room = self.max_length - len(prefix)
        kept: list[tuple[list[int], list[bool]]] = []
        for segment_ids, flags in segments:
            if room > 0:
                kept.append((segment_ids[:room], flags[:room]))
                room -= len(segment_ids)
        shown = prefix.count(self.image_id) + sum(k[0].count(self.image_id) for k in kept)
        if shown > images * self.image_tokens:
            raise BadInput(f"sample {key}: a text holds the image token; take it out")
        if shown != images * self.image_tokens:
            raise BadInput(
                f"sample {key}: data.max_length={self.max_length} cuts through an image of {self.image_tokens} tokens"
            )
        labels = [IGNORE] * len(prefix)
        for segment_ids, flags in kept:
            following = zip(segment_ids[1:], flags[1:], strict=True)
            labels += [token if flag else IGNORE for token, flag in following] + [IGNORE]
        return Document(
            key=key,
            input_ids=np.array(prefix + [i for ids, _ in kept for i in ids], dtype=np.int64),
            labels=np.array(labels, dtype=np.int64),
            position_ids=np.concatenate(
                [np.arange(len(prefix)), *(np.arange(len(prefix), len(prefix) + len(ids)) for ids, _ in kept)]
            ).astype(np.int64),
            prefix=len(prefix),
            segments=tuple(len(ids) for ids, _ in kept),
            images=images,
        )
