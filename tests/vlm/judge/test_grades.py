"""`vlm judge grade`: held-out answers against their references."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.cli import run as vlm
from shards.dataset import ShardDataset
from tests.served import Script, Served, completion
from tests.vlm.judge.bench import (
    held_out,
    keys,
    lines,
    number,
    result,
    rows_of,
)
from vlm.eval.judge.grades import grade_of
from vlm.eval.score import items_of


def test_grades(serve: Callable[[Script], Served], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies = ("9\nGood.", "I would say 9", "10/10", "4.")
    served = serve(lambda text, _: completion(replies[number(text)]))
    answers = held_out(tmp_path / "answers.jsonl")
    assert vlm(["judge", "grade", str(answers), "--out", str(tmp_path / "out"), *keys(served), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == result(tmp_path)
    assert (found["n"], found["score"], found["left_out"], found["unparsed"]) == (4, pytest.approx(23 / 30), 1, 1)
    assert found["metrics"]["mean_grade"] == pytest.approx(23 / 3)
    assert found["interval"]["images"] == 3
    assert [row["grade"] for row in rows_of(tmp_path, "grades.jsonl")] == [9, None, 10, 4]
    text = served.requests[0]["messages"][1]["content"]
    assert "[Reference 1]\nкот\n\n[Reference 2]\na cat\n\n[Answer]\nit is " in text


def test_grades_against_a_truth_of_its_own(serve: Callable[[Script], Served], tmp_path: Path) -> None:
    truth = lines(
        tmp_path / "truth", {"question_id": "a", "question": "what 0?", "reference": "кот", "contexts": "Мяу."}
    )
    answers = lines(tmp_path / "answers", {"question_id": "a", "text": "пёс"})
    served = serve(lambda *_: completion("1"))
    command = ["judge", "grade", str(answers), "--truth", str(truth), "--out", str(tmp_path / "out"), *keys(served)]
    assert vlm([*command, "repeats=3"]) == 0
    (text,) = {request["messages"][1]["content"] for request in served.requests}
    assert text.startswith("[Context 1]\nМяу.\n\n[Question]\nwhat 0?\n\n[Reference]\nкот\n\n[Answer]\nпёс\n\n[Task]\n")
    found = result(tmp_path)
    assert (len(served.requests), found["score"], found["interval"]) == (3, 0.1, None)
    assert found["agreement"]["repeats"] == {"questions": 1, "equal": 1.0, "alpha": None}


def test_without_the_package_no_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    answers, server = held_out(tmp_path / "answers"), ["url=http://localhost:1/v1", "model=m"]
    assert vlm(["judge", "grade", str(answers), "--out", str(tmp_path / "out"), *server]) == 2
    told = 'vlm: asking a server needs openai, which is not installed: pip install "ruvlm[server]"\n'
    assert capsys.readouterr() == ("", told) and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_costs_nothing(
    serve: Callable[[Script], Served], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served, answers = serve(lambda *_: completion("5")), held_out(tmp_path / "answers")
    assert vlm(["judge", "grade", str(answers), "--out", str(answers), *keys(served)]) == 2
    assert "--out" in capsys.readouterr().err
    assert served.requests == []


def test_grades_of_what_vlm_eval_writes(serve: Callable[[Script], Served], tmp_path: Path) -> None:
    """Two questions of one sample are one image."""
    answers = held_out(tmp_path / "predictions.jsonl", key="sample-000")
    command = ["judge", "grade", str(answers), "--out", str(tmp_path / "out"), *keys(serve(lambda *_: completion("5")))]
    assert vlm(command) == 0
    assert (result(tmp_path)["n"], result(tmp_path)["interval"]) == (4, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answers": []}, "4 rows have no references, first 0, 1, 2"),
        ({"question": ""}, "4 rows have no question"),
        ({"prediction": 5}, "field 'prediction'"),
        ({"answers": [5]}, "field 'answers'"),
        ({"question": 5}, "field 'question'"),
    ],
)
def test_rows_that_cannot_be_graded_are_bad_input(
    serve: Callable[[Script], Served], tmp_path: Path, fields: dict[str, Any], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    served, answers = serve(lambda *_: completion("5")), held_out(tmp_path / "answers", **fields)
    assert vlm(["judge", "grade", str(answers), "--out", str(tmp_path / "out"), *keys(served)]) == 2
    assert said in capsys.readouterr().err
    assert served.requests == []


def test_grades_against_shards(serve: Callable[[Script], Served], tmp_path: Path, english: Path) -> None:
    items = items_of(ShardDataset.open(english))
    answers = lines(tmp_path / "answers", *({"question_id": item.question_id, "text": "red"} for item in items))
    served = serve(lambda text, _: completion("10" if "[Reference]\nred\n" in text else "1"))
    command = ["judge", "grade", str(answers), "--truth", str(english), "--out", str(tmp_path / "out"), *keys(served)]
    assert vlm(command) == 0
    found = result(tmp_path)
    right = sum(item.answers == ("red",) for item in items)
    assert found["n"] == len(items)
    assert found["metrics"]["mean_grade"] == pytest.approx((10 * right + len(items) - right) / len(items))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ((0, 1, 2), "1 of 4 ids have no prediction, first 3"),
        ((0, 1, 2, 3, 9), "1 of 5 ids are no questions of this set, first 9"),
        ((0, 1, 2, 2), "occur more than once, first 2"),
        ((), "holds no rows"),
    ],
)
def test_answers_to_other_questions_are_bad_input(
    serve: Callable[[Script], Served], tmp_path: Path, ids: tuple[int, ...], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    served, truth = serve(lambda *_: completion("5")), held_out(tmp_path / "truth")
    answers = lines(tmp_path / "answers", *({"question_id": n, "prediction": "x"} for n in ids))
    command = ["judge", "grade", str(answers), "--truth", str(truth), "--out", str(tmp_path / "out"), *keys(served)]
    assert vlm(command) == 2
    err = capsys.readouterr().err
    assert said in err and str(answers) in err
    assert served.requests == []


@given(st.text(st.sampled_from("0123456789./ -nae١"), max_size=8))
def test_a_grade_is_on_the_scale_or_none(line: str) -> None:
    found = grade_of(line)
    assert found is None or 1 <= found <= 10


@pytest.mark.parametrize(("line", "grade"), [("7", 7), ("7.5", 7.5), ("10 / 10", 10), ("0", None), ("11", None),
                                             ("7/5", None), ("grade: 7", None), ("", None), ("-7", None)])  # fmt: skip
def test_grade_lines(line: str, grade: float | None) -> None:
    assert grade_of(line) == grade
