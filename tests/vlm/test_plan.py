"""The plan: the same samples on any number of ranks, every sample once an epoch, dealt in balance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import BadInput
from vlm.data.plan import Plan, balance, deal

SHARDS = st.lists(st.integers(1, 30), min_size=1, max_size=8).map(tuple)


@given(SHARDS, st.integers(1, 20), st.integers(1, 3), st.integers(0, 5), st.integers(0, 4))
def test_every_sample_once_an_epoch(shards: tuple[int, ...], batch: int, epochs: int, seed: int, window: int) -> None:
    plan = Plan(shards, batch, epochs, seed, window)
    seen = [pair for step in range(plan.steps) for pair in plan.batch(step)]
    assert sorted(seen) == [(e, i) for e in range(epochs) for i in range(plan.total)]
    assert all(len(plan.batch(s)) == batch for s in range(plan.steps - 1))
    # a pure function: any step can be asked for alone, by anybody
    assert Plan(shards, batch, epochs, seed, window).batch(plan.steps - 1) == plan.batch(plan.steps - 1)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    plan = Plan((50, 50), 10, 2, 0)
    assert not np.array_equal(plan.order(0), plan.order(1))
    assert not np.array_equal(plan.order(0), Plan((50, 50), 10, 2, 1).order(0))
    assert np.array_equal(plan.order(1), Plan((50, 50), 4, 7, 0).order(1))


def test_samples_stay_inside_their_window_of_shards() -> None:
    plan = Plan((10,) * 6, 5, 1, 3, window=2)
    groups = [{i // 10 for i in plan.order(0)[at : at + 20]} for at in range(0, 60, 20)]
    assert all(len(g) == 2 for g in groups) and set.union(*groups) == set(range(6))


def test_digest_tells_plans_apart() -> None:
    plans = [Plan((8,), 4, 1, 0), Plan((8,), 2, 1, 0), Plan((8,), 4, 1, 1), Plan((4, 4), 4, 1, 0)]
    plans.append(Plan((8,), 4, 1, 0, 0, "x"))
    assert len({p.digest for p in plans}) == len(plans)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 8), st.integers(500, 4000))
def test_dealing_loses_nothing_and_keeps_the_limit(costs: list[int], ranks: int, limit: int) -> None:
    dealt = deal(costs, ranks, limit)
    assert sorted(i for rank in dealt for row in rank for i in row) == list(range(len(costs)))
    assert len(dealt) == ranks and len({len(rank) for rank in dealt}) == 1
    assert all(sum(costs[i] for i in row) <= limit for rank in dealt for row in rank)


def test_ranks_are_balanced_on_lengths_like_llavas() -> None:
    rng = np.random.default_rng(0)
    # 665k mix: about 870 tokens in the mean, 576 of them image
    costs = (576 + rng.gamma(1.5, 196, size=128)).astype(int).tolist()
    assert balance(costs, deal(costs, 8, 16384)) <= 0.02


def test_senseless_plans_are_refused() -> None:
    for shards, batch, epochs in (((), 1, 1.0), ((3,), 0, 1.0), ((3,), 1, 0.0)):
        with pytest.raises(BadInput, match="must be above 0"):
            Plan(shards, batch, epochs, 0)
