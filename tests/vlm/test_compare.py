"""Two runs compared: McNemar's test against known values, the four cells, paired intervals, what is refused."""

import json
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset import ShardDataset
from tests.eval_files import Told, evaluation
from vlm.eval.compare import compare, mcnemar
from vlm.eval.score import items_of
from vlm.eval.tasks.base import Item, Mark, Outcome, mean_outcome


def outcome(points: Sequence[float], per_image: int = 1) -> Outcome:
    items = [Item(str(i), str(i // per_image), "?", (), "even" if i % 2 == 0 else "odd") for i in range(len(points))]
    return mean_outcome("mean", [Mark(item, "", "", value) for item, value in zip(items, points, strict=True)], {})


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        # mcnemar([[7, a], [b, 9]], exact=True) of statsmodels 0.15.0; binomtest(a, a + b) of scipy 1.17.1 says the same
        (1, 0, 1.0),
        (10, 2, 0.03857421875),
        (5, 5, 1.0),
        (6, 5, 1.0),
        (25, 59, 0.00026645108697203506),
        (0, 20, 1.9073486328125e-06),
        (121, 59, 4.4344492637551645e-06),
        (1000, 1100, 0.03072070786424249),
        (40000, 41000, 0.0004478218231375636),
    ],
)
def test_mcnemar_against_statsmodels(only_a: int, only_b: int, p_value: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p_value, rel=1e-9)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(a: int, b: int) -> None:
    tail = sum(comb(a + b, k) for k in range(min(a, b) + 1))
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail / 2 ** (a + b)), rel=1e-9)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from((0.0, 0.6, 1.0)), st.sampled_from((0.0, 0.9, 1.0))), min_size=2, max_size=30))
def test_cells_add_up_and_the_difference_is_inside_its_interval(pairs: list[tuple[float, float]]) -> None:
    a, b = outcome([one for one, _ in pairs]), outcome([other for _, other in pairs])
    found, back = compare(a, b), compare(b, a)
    assert found.n == found.cells.n == len(pairs) == sum(cells.n for cells in found.by_type.values())
    assert found.cells.both == sum(pair == (1, 1) for pair in pairs)
    assert found.cells.only_a == sum(one == 1 != other for one, other in pairs) == back.cells.only_b
    assert found.interval is not None and back.interval is not None
    assert found.interval.low <= found.difference <= found.interval.high
    assert (back.difference, back.interval.low) == pytest.approx((-found.difference, -found.interval.high), abs=2e-6)


def test_pairs_are_drawn_together() -> None:
    # b is right where a is, and on one image more: apart, both scores are off by 0.1; their difference is not
    points = [float(i % 2) for i in range(100)]
    found = compare(outcome(points), outcome([1.0, *points[1:]]))
    assert found.interval is not None
    assert found.difference == pytest.approx(0.01) and found.interval.high <= 0.04 and found.interval.low >= 0


def test_compare_of_two_evaluations(vlm: Callable[..., Told], english: Path, tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", english, wrong=[0, 1, 2])
    b = evaluation(tmp_path / "b", english, wrong=[2, 5])
    code, out, _ = vlm("compare", a, b, "--json")
    found = json.loads(out)
    n = len(items_of(ShardDataset.open(english)))
    assert code == 0 and found["n"] == n and found["scorer"] == "exact-match"
    assert found["cells"] == {"both": n - 4, "only_a": 1, "only_b": 2, "neither": 1, "p_value": 1.0}
    assert found["difference"] == pytest.approx(1 / n)
    assert found["interval"]["low"] <= 1 / n <= found["interval"]["high"]
    assert sum(cells["n"] for cells in found["by_type"].values()) == n
    code, out, _ = vlm("compare", a, b)
    assert code == 0 and f"both {n - 4}, a alone 1, b alone 2, none 1; McNemar's exact test p = 1" in out


def test_compare_of_two_files(vlm: Callable[..., Told], english: Path, tmp_path: Path) -> None:
    items = items_of(ShardDataset.open(english))
    for name, wrong in (("a", 0), ("b", 4)):
        rows = [{"question_id": q.question_id, "prediction": q.answers[0]} for q in items]
        for row in rows[:wrong]:
            row["prediction"] = "nothing"
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    files = (tmp_path / "a", tmp_path / "b", "--task", "exact")
    code, out, _ = vlm("compare", *files, "--truth", english, "--json")
    assert code == 0 and json.loads(out)["cells"]["only_a"] == 4 and json.loads(out)["score_a"] == 1
    code, _, told = vlm("compare", *files)
    assert code == 2 and told.startswith("vlm: --truth: missing")
    told = vlm("compare", *files[:2])[2]
    assert told == (f"vlm: --task: missing; {files[0]} is a file, whose answers are compared with --task and --truth\n")
    (tmp_path / "b").write_text("\n".join(map(json.dumps, rows[2:])))
    code, _, told = vlm("compare", *files, "--truth", english)
    first = ", ".join(row["question_id"] for row in rows[:2])
    assert code == 2 and f"b, beside {tmp_path / 'a'}: 2 of {len(rows)} ids have no prediction, first {first}\n" in told
    # both lack what the truth has
    (tmp_path / "a").write_text("\n".join(map(json.dumps, rows[2:])))
    code, _, told = vlm("compare", *files, "--truth", english)
    assert code == 2 and told.startswith(f"vlm: {tmp_path / 'a'}: 2 of {len(rows)} ids have no prediction")


def test_what_does_not_compare_is_refused(
    vlm: Callable[..., Told], english: Path, russian: Path, tmp_path: Path
) -> None:
    a = evaluation(tmp_path / "a", english)

    def refused(b: Path, *options: object) -> str:
        code, out, told = vlm("compare", a, b, *options)
        assert (code, out, told.count("\n")) == (2, "", 1)
        return told

    assert "their digests differ" in refused(evaluation(tmp_path / "ru", russian))
    assert "only runs of one task compare" in refused(evaluation(tmp_path / "t", english, task="llava-bench"))
    other = evaluation(tmp_path / "s", english, scorer="lenient")
    assert "choose with --scorer" in refused(other)
    assert vlm("compare", a, other, "--scorer", "exact-match")[0] == 0
    assert "holds no result.json" in refused(tmp_path)
    assert "no longer in" in refused(evaluation(tmp_path / "m", english), "--truth", tmp_path / "gone")
    assert "other questions than those of" in refused(evaluation(tmp_path / "o", english), "--truth", russian)
    changed = evaluation(tmp_path / "c", english)
    (changed / "predictions.jsonl").write_text("")
    assert "not the answers that result.json was made from" in refused(changed)
    assert "'dataset' should be of type dict" in refused(evaluation(tmp_path / "n", english, dataset=None))


def test_shards_that_moved_are_named(vlm: Callable[..., Told], english: Path, tmp_path: Path) -> None:
    moved = {"path": str(tmp_path / "gone"), "digest": ShardDataset.open(english).digest}
    a, b = (evaluation(tmp_path / name, english, dataset=moved) for name in "ab")
    assert "say where with --truth" in vlm("compare", a, b)[2]
    code, out, _ = vlm("compare", a, b, "--truth", english, "--json")
    assert code == 0 and json.loads(out)["difference"] == 0
