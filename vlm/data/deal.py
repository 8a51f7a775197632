"""A step's samples dealt to ranks and micro-batches by cost, so that no rank waits for another; a pure function."""

import heapq
from collections.abc import Sequence

import numpy as np

# enough to end within a thousandth of the mean, where that can be reached at all
_SWAPS_A_ROW = 8
_EVEN = 0.001
# above this another start is tried
_UNEVEN, _HALVINGS = 0.005, 10
_PARTS = 2**30


def deal(tokens: Sequence[int], ranks: int, limit: int, costs: Sequence[float] | None = None) -> list[list[list[int]]]:
    """Deal items to ranks and micro-batches by cost (default: tokens), longest first to the lightest row, then swap.

    Returns `rows[rank][micro_batch]` = positions into `tokens`. All ranks get the same number of micro-batches, the
    fewest for which no row has more than `limit` tokens (a single item above the limit gets a row of its own). A row
    can be empty when there are fewer items than rows. Sources: Graham, "Bounds on multiprocessing timing anomalies"
    (1969); where that leaves ranks uneven, Coffman, Garey, Johnson, "An application of bin-packing to multiprocessor
    scheduling" (1978).
    """
    costs = _whole(tokens if costs is None else costs)
    by_cost = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    micro_batches = max(1, -(-sum(tokens) // (ranks * limit)))
    while True:
        rows = _lightest_first(costs, by_cost, ranks * micro_batches)
        if all(len(row) <= 1 or sum(tokens[i] for i in row) <= limit for row in rows):
            break
        micro_batches += 1
    sizes, loads = np.array(tokens), np.array(costs, dtype=np.float64)
    rows = _even_out(rows, sizes, loads, limit)
    # few long items among few: rows of unlike numbers of items are then better, and first fit finds them
    if (dearest := _dearest(rows, loads)) > loads.sum() / len(rows) * (1 + _UNEVEN):
        packed = _first_fit(tokens, costs, by_cost, limit, len(rows), dearest)
        if packed and _dearest(packed := _even_out(packed, sizes, loads, limit), loads) < dearest:
            rows = packed
    return _spread(rows, costs, ranks)


def _whole(costs: Sequence[float]) -> list[int]:
    """In whole parts of the dearest: these add up alike in any order, so ranks on unlike processors decide alike."""
    dearest = max(costs, default=0) or 1
    # nothing is for free, else a row would take any number of such items
    return [max(1, round(cost / dearest * _PARTS)) for cost in costs]


def _dearest(rows: list[list[int]], costs: np.ndarray) -> float:
    return max(float(costs[row].sum()) for row in rows)


def _first_fit(
    tokens: Sequence[int], costs: Sequence[float], by_cost: Sequence[int], limit: int, count: int, most: float
) -> list[list[int]]:
    """Rows cheaper than `most` by first fit, the cheapest that halving finds; none where there are none."""
    least, found = max(sum(costs) / count, max(costs)), list[list[int]]()
    for _ in range(_HALVINGS):
        capacity = (least + most) / 2
        room = [[capacity, float(limit)] for _ in range(count)]
        rows: list[list[int]] = [[] for _ in range(count)]
        for item in by_cost:
            cost, size = costs[item], tokens[item]
            fit = next((r for r, (c, t) in enumerate(room) if cost <= c and (size <= t or not rows[r])), None)
            if fit is None:
                least = capacity
                break
            rows[fit].append(item)
            room[fit][0] -= cost
            room[fit][1] -= size
        else:
            most, found = capacity, [sorted(row) for row in rows]
    return found


def _even_out(rows: list[list[int]], tokens: np.ndarray, costs: np.ndarray, limit: int) -> list[list[int]]:
    """Exchange items of the dearest row for others' as long as that makes it, and what it swaps with, cheaper.

    One for one or for none; where that no longer helps, up to two for up to two.
    """
    row_of = np.empty(len(tokens), dtype=np.int64)
    for row, items in enumerate(rows):
        row_of[items] = row
    for _ in range(_SWAPS_A_ROW * len(rows)):
        loads = np.bincount(row_of, costs, len(rows))
        if loads.max() * (1 - _EVEN) <= loads.mean():
            break
        if not (
            _exchange(row_of, tokens, costs, limit, len(rows), 1)
            or _exchange(row_of, tokens, costs, limit, len(rows), 2)
        ):
            break
    return [np.flatnonzero(row_of == row).tolist() for row in range(len(rows))]


def _exchange(row_of: np.ndarray, tokens: np.ndarray, costs: np.ndarray, limit: int, count: int, most: int) -> bool:
    """Make the exchange of up to `most` items that leaves the dearer of the two rows cheapest; False if none helps."""
    loads, sizes = np.bincount(row_of, costs, count), np.bincount(row_of, tokens, count)
    dearest = int(loads.argmax())
    row, members = _handfuls(row_of, count, most)
    # an item behind the last stands for none
    cost, size = np.append(costs, 0.0)[members].sum(axis=1), np.append(tokens, 0)[members].sum(axis=1)
    given, taken = np.ix_(np.flatnonzero(row == dearest), np.flatnonzero(row != dearest))
    saved, moved = cost[given] - cost[taken], size[given] - size[taken]
    peak = np.maximum(loads[dearest] - saved, loads[row[taken]] + saved)
    peak[(sizes[dearest] - moved > limit) | (sizes[row[taken]] + moved > limit)] = np.inf
    if not peak.size or peak.min() >= loads[dearest]:
        return False
    a, b = np.unravel_index(int(peak.argmin()), peak.shape)
    ours, theirs = members[given[a, 0]], members[taken[0, b]]
    other = row[taken[0, b]]
    row_of[ours[ours < len(row_of)]] = other
    row_of[theirs[theirs < len(row_of)]] = dearest
    return True


def _handfuls(row_of: np.ndarray, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """All of none, one and (`most` = 2) two items of a row: their row (n,), the items (n, 2) padded by len(row_of)."""
    none, items = len(row_of), np.arange(len(row_of))
    first, second = np.triu_indices(none if most > 1 else 0, 1)
    same = row_of[first] == row_of[second]
    first, second = first[same], second[same]
    row = np.concatenate([np.arange(count), row_of, row_of[first]])
    one = np.concatenate([np.full(count, none), items, first])
    two = np.concatenate([np.full(count + none, none), second])
    return row, np.stack([one, two], axis=1)


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
