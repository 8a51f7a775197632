"""The plan: which sample is seen when, as a pure function of seed and step.

Step `s` takes samples `[s·B, (s+1)·B)` of an order that depends on seed, epoch and mixture alone, on any number of
ranks. They are then dealt to ranks and micro-batches by cost (`deal.py`). No loader state is ever saved.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from shards.errors import BadInput


class Part(NamedTuple):
    """A set of the mixture: how many shards it has, and how many of its samples an epoch of the plan takes."""

    shards: int
    draws: int


@dataclass(frozen=True)
class Plan:
    """The order of the samples of `shard_sizes` over `epochs`, in global batches of `batch_size`.

    `bound` is whatever else a run must not change: it is part of the digest. `window` counts the shards whose
    samples are shuffled together; 0 shuffles over the whole set. `parts` divides the shards into sets, in their
    order; every step takes of each set in proportion to its draws, and a set's samples come again only when all of
    them have been seen. Without parts all shards are one set, seen once an epoch.
    """

    shard_sizes: tuple[int, ...]
    batch_size: int
    epochs: float
    seed: int
    window: int = 0
    bound: str = ""
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs <= 0 or self.total < 1 or self.steps < 1:
            raise BadInput(
                f"data.batch_size={self.batch_size}, optim.epochs={self.epochs}: both must be above 0, no set empty"
            )
        if self.parts and sum(part.shards for part in self.parts) != len(self.shard_sizes):
            raise ValueError(f"parts {self.parts} of {len(self.shard_sizes)} shards")

    @property
    def total(self) -> int:
        """Samples in one epoch."""
        return sum(part.draws for part in self.parts) if self.parts else sum(self.shard_sizes)

    @property
    def samples(self) -> int:
        """Samples in all epochs."""
        return round(self.total * self.epochs)

    @property
    def steps(self) -> int:
        """Optimizer steps in all; the last one may hold fewer samples."""
        return -(-self.samples // self.batch_size)

    @property
    def digest(self) -> str:
        """Identifies the plan; a checkpoint of another plan is not resumed."""
        fields = [self.shard_sizes, self.batch_size, self.epochs, self.seed, self.window, self.bound, self.parts]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def order(self, epoch: int, part: int = 0) -> np.ndarray:
        """Sample indices of pass `epoch` over a set, int64: shards permuted, samples shuffled in a window of shards."""
        first, sizes = self._sets[part]
        return first + _order(sizes, self.seed, epoch, self.window, part)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """`(epoch, sample index)` pairs of global step `step`, counted from 0; epoch counts passes over its set."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        places = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.samples))
        epochs, at = np.divmod(places, self.total)
        draws = tuple(part.draws for part in self.parts) or (self.total,)
        which, nth = (found[at] for found in _turns(draws))
        drawn = epochs * np.array(draws)[which] + nth
        passes, inside = np.divmod(drawn, np.array([sum(sizes) for _, sizes in self._sets])[which])
        indices = np.empty_like(places)
        for part, epoch in {(int(p), int(e)) for p, e in zip(which, passes, strict=True)}:
            of_pass = (which == part) & (passes == epoch)
            first, sizes = self._sets[part]
            indices[of_pass] = first + _order(sizes, self.seed, epoch, self.window, part)[inside[of_pass]]
        return list(zip(passes.tolist(), indices.tolist(), strict=True))

    @cached_property
    def _sets(self) -> list[tuple[int, tuple[int, ...]]]:
        # first sample and shard sizes of every set
        sets, shard, sample = [], 0, 0
        for part in self.parts or (Part(len(self.shard_sizes), 0),):
            sizes = self.shard_sizes[shard : shard + part.shards]
            sets.append((sample, sizes))
            shard, sample = shard + part.shards, sample + sum(sizes)
        return sets


@lru_cache(maxsize=64)
def _order(shard_sizes: tuple[int, ...], seed: int, epoch: int, window: int, part: int) -> np.ndarray:
    rng = np.random.default_rng([seed, epoch, part])
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = rng.permutation(len(shard_sizes))
    width = window or len(shards)
    groups = (shards[i : i + width] for i in range(0, len(shards), width))
    return np.concatenate(
        [rng.permutation(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in group])) for group in groups]
    )


@lru_cache(maxsize=2)
def _turns(draws: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each place in an epoch the set whose turn it is and how many turns that set had before, int64 (total,) each.

    A set's turns are spread evenly over the epoch, so its share of every step is its share of the epoch.
    """
    which = np.concatenate([np.full(count, part) for part, count in enumerate(draws)])
    nth = np.concatenate([np.arange(count) for count in draws])
    turn = np.lexsort((which, (nth + 0.5) / np.array(draws)[which]))
    return which[turn], nth[turn]
