"""The plan: which sample is seen when, and by which rank, as a pure function of seed, step and lengths.

Step `s` takes samples `[s·B, (s+1)·B)` of an order that depends on (seed, epoch) alone, on any number of ranks.
They are then dealt to ranks and micro-batches by token count. No loader state is ever saved.
"""

import hashlib
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.errors import BadInput


@dataclass(frozen=True)
class Plan:
    """The order of `sum(shard_sizes)` samples over `epochs`, in global batches of `batch_size`.

    `bound` is whatever else a run must not change: it is part of the digest. `window` counts the shards whose
    samples are shuffled together; 0 shuffles over the whole set.
    """

    shard_sizes: tuple[int, ...]
    batch_size: int
    epochs: float
    seed: int
    window: int = 0
    bound: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.epochs <= 0 or self.total < 1 or self.steps < 1:
            raise BadInput(
                f"data.batch_size={self.batch_size}, optim.epochs={self.epochs}: both must be above 0, no set empty"
            )

    @property
    def total(self) -> int:
        """Samples in one epoch."""
        return sum(self.shard_sizes)

    @property
    def steps(self) -> int:
        """Optimizer steps in all; the last one may hold fewer samples."""
        return -(-round(self.total * self.epochs) // self.batch_size)

    @property
    def digest(self) -> str:
        """Identifies the plan; a checkpoint of another plan is not resumed."""
        fields = [self.shard_sizes, self.batch_size, self.epochs, self.seed, self.window, self.bound]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def order(self, epoch: int) -> np.ndarray:
        """Sample indices of one epoch, int64 (total,): shards permuted, samples shuffled inside a window of shards."""
        return _order(self.shard_sizes, self.seed, epoch, self.window)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """`(epoch, sample index)` pairs of global step `step`, counted from 0."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        end = min((step + 1) * self.batch_size, round(self.total * self.epochs))
        places = (divmod(i, self.total) for i in range(step * self.batch_size, end))
        return [(epoch, int(self.order(epoch)[at])) for epoch, at in places]


@lru_cache(maxsize=4)
def _order(shard_sizes: tuple[int, ...], seed: int, epoch: int, window: int) -> np.ndarray:
    rng = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = rng.permutation(len(shard_sizes))
    width = window or len(shards)
    groups = (shards[i : i + width] for i in range(0, len(shards), width))
    return np.concatenate(
        [rng.permutation(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in group])) for group in groups]
    )


def deal(costs: Sequence[int], ranks: int, limit: int) -> list[list[list[int]]]:
    """Deal items to ranks and micro-batches by cost, longest first to the lightest row.

    Returns `rows[rank][micro_batch]` = positions into `costs`. All ranks get the same number of micro-batches, the
    fewest for which no row is dearer than `limit` (a single item above the limit gets a row of its own). A row can
    be empty when there are fewer items than rows. Source: Graham, "Bounds on multiprocessing timing anomalies"
    (1969).
    """
    by_cost = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    micro_batches = max(1, -(-sum(costs) // (ranks * limit)))
    while True:
        rows = _lightest_first(costs, by_cost, ranks * micro_batches)
        if all(len(row) <= 1 or sum(costs[i] for i in row) <= limit for row in rows):
            break
        micro_batches += 1
    return _spread(rows, costs, ranks)


def _lightest_first(costs: Sequence[int], by_cost: Sequence[int], count: int) -> list[list[int]]:
    heap = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for item in by_cost:
        load, row = heapq.heappop(heap)
        rows[row].append(item)
        heapq.heappush(heap, (load + costs[item], row))
    return [sorted(row) for row in rows]


def _spread(rows: list[list[int]], costs: Sequence[int], ranks: int) -> list[list[list[int]]]:
    # ranks wait for each other at every micro-batch, so rows of like cost run at the same time
    rows = sorted(rows, key=lambda row: (-sum(costs[i] for i in row), row))
    return [rows[rank::ranks] for rank in range(ranks)]


def balance(costs: Sequence[int], dealt: list[list[list[int]]]) -> float:
    """Idle share of the slowest micro-batches: `1 - mean / max`, summed over micro-batches. 0 is perfect."""
    loads = np.array([[sum(costs[i] for i in row) for row in rank] for rank in dealt])
    return float(1 - loads.mean(axis=0).sum() / loads.max(axis=0).sum())
