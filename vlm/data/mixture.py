"""Several dataset folders as one: their samples end to end, and how much an epoch takes of each."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import fsum, isfinite
from pathlib import Path

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.sample import Sample
from vlm.data.plan import Part


@dataclass(kw_only=True)
class SetConfig:
    """One entry of `data.mix`."""

    path: str = ""
    """Folder of training shards."""
    epochs: float = 1.0
    """Passes over this set in an epoch of the run; beside weights, at least so many."""
    weight: float | None = None
    """Its share of every step, relative to the other weights; all sets name one or none does."""

    def __post_init__(self) -> None:
        if not self.path:
            raise BadInput("data.mix: an entry without path; name the folder of the shards")
        for key, value in (("epochs", self.epochs), ("weight", self.weight)):
            if value is not None and not (isfinite(value) and value > 0):
                raise BadInput(f"data.mix: {key} {value} of {self.path} must be above 0")


class Corpus:
    """The training samples, those of the first set first. Reading is safe from threads and after a fork."""

    def __init__(self, sets: Sequence[ShardDataset], mix: Sequence[SetConfig] = ()) -> None:
        """`mix` says of each set how much an epoch takes; without it every sample is seen once."""
        self.sets = list(sets)
        self._starts = [0, *accumulate(len(each) for each in sets)]
        self.shard_sizes = [size for each in sets for size in each.shard_sizes]
        draws = draws_of([len(each) for each in sets], mix) if mix else []
        self.parts = tuple(Part(len(each.shard_sizes), count) for each, count in zip(sets, draws, strict=bool(mix)))

    @classmethod
    def open(cls, train: str, mix: Sequence[SetConfig] = ()) -> "Corpus":
        """The sets of `data.train` or of `data.mix`; BadInput unless just one of the two is given."""
        if bool(train) == bool(mix):
            both = "both are given" if mix else "both are empty"
            raise BadInput(f"data.train, data.mix: {both}; name one folder in data.train or several in data.mix")
        if len({Path(entry.path).resolve() for entry in mix}) != len(mix):
            raise BadInput("data.mix: a path stands there twice; raise its epochs or weight instead")
        sets = [ShardDataset.open(Path(path)) for path in ([train] if train else [m.path for m in mix])]
        if empty := next((each for each in sets if not len(each)), None):
            raise BadInput(f"{empty.folder}: holds no sample; take it out of the recipe")
        return cls(sets, mix)

    @property
    def digest(self) -> str:
        """Identifies the content of all sets."""
        digests = [each.digest for each in self.sets]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, i: int) -> Sample:
        """Sample `i`, 0 ≤ i < len; BadInput when its bytes are not what the index says."""
        each, inside = self._find(i)
        return self.sets[each].read(inside)

    def key(self, i: int) -> str:
        """Key of sample `i`; of several sets, behind the name of its own."""
        each, inside = self._find(i)
        key = self.sets[each].entries.key(inside)
        return key if len(self.sets) == 1 else f"{self.sets[each].folder.name}/{key}"

    def _find(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        each = bisect_right(self._starts, i) - 1
        return each, i - self._starts[each]


def draws_of(sizes: Sequence[int], mix: Sequence[SetConfig]) -> list[int]:
    """How many samples of each set an epoch takes.

    Without weights, `epochs` passes over each. With weights, the shares are theirs, and the epoch is as long as it
    takes until every set has had its `epochs` passes. Raises BadInput when only some sets have a weight.
    """
    passes = [size * entry.epochs for size, entry in zip(sizes, mix, strict=True)]
    weights = [entry.weight for entry in mix if entry.weight is not None]
    if weights and len(weights) != len(mix):
        raise BadInput("data.mix: give every set a weight, or none")
    if weights:
        whole = fsum(weights)
        length = max(count * whole / weight for count, weight in zip(passes, weights, strict=True))
        passes = [length * weight / whole for weight in weights]
    return [max(1, round(count)) for count in passes]
