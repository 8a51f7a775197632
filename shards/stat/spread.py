"""How whole numbers spread: percentiles and a histogram."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_BINS = 24


@dataclass(frozen=True, slots=True)
class Bin:
    """How many values lie in `low` ≤ value ≤ `high`."""

    low: int
    high: int
    count: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles by nearest rank: each is one of the values. All is 0, and `bins` empty, where there are no values.

    `bins` join without gaps from the least value to the greatest and have one round width, but for the last: where a
    few values lie far beyond the 99th percentile, it takes them all.
    """

    count: int
    total: int
    mean: float
    min: int
    p50: int
    p90: int
    p99: int
    max: int
    bins: tuple[Bin, ...]


def spread(counts: Mapping[int, int]) -> Spread:
    """The spread of non-negative values, given as value → how often it occurs."""
    count = sum(counts.values())
    if not count:
        return Spread(0, 0, 0.0, 0, 0, 0, 0, 0, ())
    values = sorted(value for value, times in counts.items() if times)
    total = sum(value * counts[value] for value in values)
    p50, p90, p99 = _ranked(values, counts, [-(-count * percent // 100) for percent in (50, 90, 99)])
    return Spread(
        count=count,
        total=total,
        mean=round(total / count, 3),
        min=values[0],
        p50=p50,
        p90=p90,
        p99=p99,
        max=values[-1],
        bins=_bins(counts, values[0], p99, values[-1]),
    )


def _ranked(values: list[int], counts: Mapping[int, int], ranks: list[int]) -> list[int]:
    """The values at these ranks, counted from 1; `values` and `ranks` ascend."""
    found: list[int] = []
    below = 0
    for value in values:
        below += counts[value]
        while len(found) < len(ranks) and ranks[len(found)] <= below:
            found.append(value)
    return found


def _bins(counts: Mapping[int, int], low: int, usual: int, high: int) -> tuple[Bin, ...]:
    """Bins of the narrowest width with which 24 reach from `low` to `usual`."""
    power = 1
    while usual // (10 * power) - low // (10 * power) >= _BINS:
        power *= 10
    width = next(power * factor for factor in (1, 2, 5, 10) if _reach(low, usual, power * factor) <= _BINS)
    bins = _reach(low, high, width)
    if bins > _BINS:
        bins = _reach(low, usual, width)
    first = low // width
    tally: Counter[int] = Counter()
    for value, times in counts.items():
        tally[min(value // width - first, bins)] += times
    regular = [Bin((first + i) * width, (first + i + 1) * width - 1, tally[i]) for i in range(bins)]
    beyond = Bin((first + bins) * width, high, tally[bins])
    return (*regular, *([beyond] if beyond.count else []))


def _reach(low: int, high: int, width: int) -> int:
    return high // width - low // width + 1
