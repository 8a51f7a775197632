"""What a training reads: how long its samples are, and the rows that they are packed into."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.images import read_header
from shards.sample import Sample
from vlm.config import Recipe
from vlm.data.cost import Cost
from vlm.data.deal import deal
from vlm.data.documents import Document
from vlm.data.images import Pixels
from vlm.data.mixture import Corpus
from vlm.inputs import tokeniser_of
from vlm.model.load import sliding_window

SAMPLES = 2000
_STEPS = 16


@dataclass(frozen=True)
class MeanSample:
    """Means of a sample: tokens, supervised tokens, keys seen by all queries together, images."""

    tokens: float
    supervised: float
    keys: float
    images: float
    read: int


@dataclass(frozen=True)
class Documents:
    """Documents of an even share of the training set; `virtual` tokens are put before each."""

    documents: Sequence[Document]
    virtual: int
    window: int | None

    @classmethod
    def read(cls, recipe: Recipe, dataset: Corpus, folder: Path) -> "Documents":
        """At most `SAMPLES` of them. Raises BadInput where training would."""
        tokeniser, pixels = tokeniser_of(recipe, folder), Pixels.of(folder)
        count = min(len(dataset), SAMPLES)
        samples = (dataset.read(i * len(dataset) // count) for i in range(count))
        return cls(
            [tokeniser.document(sample, _views(sample, pixels)) for sample in samples],
            tokeniser.virtual_tokens,
            sliding_window(folder),
        )

    def lengths(self) -> MeanSample:
        """Means over the documents, virtual tokens included."""
        rows = [(len(d) + self.virtual, d.supervised, self._keys(d), d.images) for d in self.documents]
        tokens, supervised, keys, images = (float(mean) for mean in np.mean(rows, axis=0))
        return MeanSample(tokens, supervised, keys, images, len(rows))

    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(map(len, self.documents)) + self.virtual

    def largest_row(self, recipe: Recipe, ranks: int, cost: Cost) -> tuple[list[Document], int]:
        """The row with most tokens of a few steps, dealt as training deals them; the most micro-batches of a step."""
        sizes = [len(d) + self.virtual for d in self.documents]
        images = [d.images for d in self.documents]
        costs = cost.of(np.array(sizes), np.array(images))
        order = np.random.default_rng(recipe.seed)
        largest, micro_batches = list[int](), 1
        for _ in range(_STEPS):
            size = recipe.data.batch_size
            drawn = order.choice(len(sizes), size, replace=size > len(sizes))
            limit = recipe.data.micro_batch_tokens
            dealt = deal([sizes[i] for i in drawn], ranks, limit, costs[drawn].tolist())
            micro_batches = max(micro_batches, len(dealt[0]))
            rows = [[int(drawn[place]) for place in row] for rank in dealt for row in rank]
            largest = max([largest, *rows], key=lambda row: sum(sizes[i] for i in row))
        return [self.documents[i] for i in largest], micro_batches

    def row(self, tokens: int, seed: int) -> list[Document]:
        """Documents of at most so many tokens together, but one at least, drawn from all."""
        order, row, left = np.random.default_rng(seed), list[Document](), tokens
        while not row or left >= 0:
            for i in order.permutation(len(self.documents)):
                left -= len(self.documents[i]) + self.virtual
                if row and left < 0:
                    break
                row.append(self.documents[i])
        return row

    def tokens(self, row: Sequence[Document]) -> int:
        """Tokens of a row."""
        return sum(map(len, row)) + self.virtual * len(row)

    def _keys(self, document: Document) -> int:
        """Keys that the queries of a document see together."""
        seen = np.concatenate([np.arange(self.virtual), document.position_ids + self.virtual]) + 1
        return int(np.minimum(seen, self.window).sum() if self.window else seen.sum())


def _views(sample: Sample, pixels: Pixels) -> int:
    if sample.image is None or not pixels.tiles:
        return 1
    _, width, height = read_header(sample.image)
    return pixels.count(width, height)
