"""The plan: which sample is seen when, and by which rank, as a pure function of seed, step and lengths.

Step `s` takes samples `[s·B, (s+1)·B)` of an order that depends on seed, epoch and mixture alone, on any number of
ranks. They are then dealt to ranks and micro-batches by cost. No loader state is ever saved.
"""

import hashlib
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from shards.errors import BadInput

# enough to end within a thousandth of the mean, where that can be reached at all
_SWAPS_A_ROW = 8
_EVEN = 0.001


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


def deal(tokens: Sequence[int], ranks: int, limit: int, costs: Sequence[float] | None = None) -> list[list[list[int]]]:
    """Deal items to ranks and micro-batches by cost (default: tokens), longest first to the lightest row, then swap.

    Returns `rows[rank][micro_batch]` = positions into `tokens`. All ranks get the same number of micro-batches, the
    fewest for which no row has more than `limit` tokens (a single item above the limit gets a row of its own). A row
    can be empty when there are fewer items than rows. Source: Graham, "Bounds on multiprocessing timing anomalies"
    (1969).
    """
    costs = tokens if costs is None else costs
    by_cost = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    micro_batches = max(1, -(-sum(tokens) // (ranks * limit)))
    while True:
        rows = _lightest_first(costs, by_cost, ranks * micro_batches)
        if all(len(row) <= 1 or sum(tokens[i] for i in row) <= limit for row in rows):
            break
        micro_batches += 1
    return _spread(_even_out(rows, np.array(tokens), np.array(costs, dtype=np.float64), limit), costs, ranks)


def _even_out(rows: list[list[int]], tokens: np.ndarray, costs: np.ndarray, limit: int) -> list[list[int]]:
    """Swap items of the dearest row with others' for as long as that makes it, and what it swaps with, cheaper."""
    row_of = np.empty(len(tokens), dtype=np.int64)
    for row, items in enumerate(rows):
        row_of[items] = row
    for _ in range(_SWAPS_A_ROW * len(rows)):
        loads = np.bincount(row_of, costs, len(rows))
        sizes = np.bincount(row_of, tokens, len(rows))
        dearest = int(loads.argmax())
        if loads[dearest] * (1 - _EVEN) <= loads.mean():
            break
        own, others = np.flatnonzero(row_of == dearest), np.flatnonzero(row_of != dearest)
        given, taken = np.ix_(own, others)
        saved, moved = costs[given] - costs[taken], tokens[given] - tokens[taken]
        peak = np.maximum(loads[dearest] - saved, loads[row_of[taken]] + saved)
        peak[(sizes[dearest] - moved > limit) | (sizes[row_of[taken]] + moved > limit)] = np.inf
        best = np.unravel_index(int(peak.argmin()), peak.shape) if peak.size else None
        if best is None or peak[best] >= loads[dearest]:
            break
        a, b = own[best[0]], others[best[1]]
        row_of[a], row_of[b] = row_of[b], row_of[a]
    return [np.flatnonzero(row_of == row).tolist() for row in range(len(rows))]


def _lightest_first(costs: Sequence[float], by_cost: Sequence[int], count: int) -> list[list[int]]:
    heap: list[tuple[float, int]] = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for item in by_cost:
        load, row = heapq.heappop(heap)
        rows[row].append(item)
        heapq.heappush(heap, (load + costs[item], row))
    return [sorted(row) for row in rows]


def _spread(rows: list[list[int]], costs: Sequence[float], ranks: int) -> list[list[list[int]]]:
    # ranks wait for each other at every micro-batch, so rows of like cost run at the same time
    rows = sorted(rows, key=lambda row: (-sum(costs[i] for i in row), row))
    return [rows[rank::ranks] for rank in range(ranks)]


def balance(costs: Sequence[float], dealt: list[list[list[int]]]) -> float:
    """Idle share of the slowest micro-batches: `1 - mean / max`, summed over micro-batches. 0 is perfect."""
    loads = np.array([[sum(costs[i] for i in row) for row in rank] for rank in dealt])
    return float(1 - loads.mean(axis=0).sum() / loads.max(axis=0).sum())
