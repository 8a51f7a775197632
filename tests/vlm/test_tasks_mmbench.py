"""MMBench: rotations that belong together, tables in and out, the same in shards."""

import base64
import csv
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from launch.cli import run
from shards.build import build
from shards.errors import BadInput
from shards.readers import ReaderOptions, find_reader
from tests.vlm.lmms_bridge import MISSING, PYTHON, lmms_eval
from vlm.eval.interval import interval
from vlm.eval.score import read_predictions, read_truth, score
from vlm.eval.tasks import find_task
from vlm.eval.tasks.base import Item

MMBENCH, MMBENCH_RU = find_task("mmbench"), find_task("mmbench-ru")
_OPTIONS = ("cat", "dog", "red bird", "banana")


def _item(options: tuple[str, ...] = _OPTIONS, index: int = 0, answer: str = "A", **labels: str) -> Item:
    details = {"index": index, **labels}
    return Item(str(index), str(index % 10**6), "q", (answer,), labels.get("category"), options, "en", details)


def _rotated(question: int, right: str, **labels: str) -> list[Item]:
    options, answer = _OPTIONS[:3], "ABC".index(right)
    return [_item(options[k:] + options[:k], question + 10**6 * k, "ABC"[(answer - k) % 3], **labels) for k in range(3)]


def test_a_question_is_right_if_every_rotation_is() -> None:
    items = [*_rotated(1, "A", category="x"), *_rotated(2, "B", category="y", **{"l2-category": "z"})]
    answers = {item.question_id: item.answers[0] for item in items} | {"2000002": "A"}
    assert items[5].answers[0] == "C"
    outcome = score(MMBENCH, items[::-1], answers)
    metrics = outcome.metrics
    assert (outcome.score, metrics["missing_rows"]) == (0.5, 0) and metrics["circular"] == 0.5
    assert (metrics["vanilla_main"], metrics["vanilla_all"]) == (1.0, pytest.approx(5 / 6))
    assert (metrics["questions"], metrics["rows"], outcome.n) == (2, 6, 6)
    assert metrics["by_category"]["circular"] == {"x": {"n": 1, "score": 1.0}, "y": {"n": 1, "score": 0.0}}
    assert metrics["by_category"]["vanilla_all"]["y"] == {"n": 3, "score": pytest.approx(2 / 3)}
    assert metrics["by_l2-category"]["vanilla_main"]["z"] == {"n": 1, "score": 1.0}


@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 3)), min_size=1, max_size=6))
def test_the_statistic_is_the_score_of_repeated_questions(questions: list[tuple[list[bool], int]]) -> None:
    items = [item for number in range(len(questions)) for item in _rotated(number, "A")]
    right = [hit for hits, _ in questions for hit in hits]
    answers = {i.question_id: i.answers[0] if hit else "none" for i, hit in zip(items, right, strict=True)}
    weights = np.repeat([float(times) for _, times in questions], 3)
    for scorer in MMBENCH.scorers:
        outcome = score(MMBENCH, items, answers, scorer)
        assert outcome.statistic(np.ones(len(items))) == outcome.score
        if weights.any():
            hits = [all(hits) for hits, times in questions for _ in range(times)]
            assert outcome.statistic(weights) == pytest.approx(sum(hits) / len(hits))


_HEADER = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "prediction")


def _row(index: int, answer: str = "A", prediction: str | None = None, **cells: str) -> dict[str, str]:
    row = {"index": str(index), "question": 'What "is"\nit?', "A": "cat", "B": "dog", "C": "nan", "D": "",
           "answer": answer, "category": "x", "l2-category": "y", "hint": "", "image": ""}  # fmt: skip
    return row | cells | ({} if prediction is None else {"prediction": prediction})


def _turned(question: int, answer: str = "B", prediction: str | None = None, **cells: str) -> dict[str, str]:
    """The rotation of `_row`."""
    return _row(10**6 + question, answer, prediction, **{"A": "dog", "B": "cat"} | cells)


def _tsv(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        names = [name for name in _HEADER if rows and name in rows[0]] or _HEADER
        writer = csv.DictWriter(handle, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _xlsx(path: Path, rows: list[dict[str, str]]) -> Path:
    book = pytest.importorskip("openpyxl").Workbook()
    names = list(rows[0])
    book.active.append(names)
    for row in rows:
        book.active.append([float(row[name]) if name == "index" else row[name] or None for name in names])
    book.save(path)
    return path


@pytest.mark.parametrize("name", ["all.tsv", "all.xlsx"])
def test_predictions_in_the_file_of_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    rows = [_row(5, "В", "dog"), _turned(5, "A", "A"), _row(6, "A", "B"), _turned(6, "B", "nan")]
    path = (_tsv if name.endswith("tsv") else _xlsx)(tmp_path / name, rows)
    for command in ([str(path), "--truth", str(path)], ["--predictions", str(path), "--truth", str(path)]):
        assert run(["score", "mmbench", *command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["score"], found["scorer"]) == (0.5, "official")
        values = {key: found["metrics"][key] for key in ("circular", "vanilla_main", "vanilla_all")}
        assert values == {"circular": 0.5, "vanilla_main": 0.5, "vanilla_all": 0.5}
        assert found["metrics"]["no_option_found"] == 1
    items = read_truth(MMBENCH, path)
    assert items[0].options == ("cat", "dog") and items[0].answers == ("B",)
    assert MMBENCH.choices(items[0]) == ["A", "B"]


@pytest.mark.parametrize("lines", [["index", "prediction"], ["question_id", "text"]])
def test_predictions_apart_in_any_order(tmp_path: Path, lines: list[str]) -> None:
    # what is a line's end to Python is none to a table
    truth = _tsv(tmp_path / "truth.tsv", [_row(1, "A", A="c\u2028at"), _row(2, "B") | {"index": "2.0"}])
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(dict(zip(lines, row, strict=True))) + "\n" for row in [(2, "A"), ("1", "A")]))
    outcome = score(MMBENCH, read_truth(MMBENCH, truth), read_predictions(MMBENCH, [answers]))
    assert [mark.points for mark in outcome.marks] == [1.0, 0.0]


def test_rows_that_borrow_a_picture_are_of_one_image(tmp_path: Path) -> None:
    rows = [_row(1, image="iVBORw0KGgo="), _row(2, image="1"), _row(10**6 + 1, image="1"), _row(10**6 + 2, image="1")]
    assert {item.image for item in read_truth(MMBENCH, _tsv(tmp_path / "truth.tsv", rows))} == {"1"}


_WHOLE = [row for i in (1, 2, 3) for row in (_row(i, prediction="A"), _turned(i, prediction="A"))]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (_WHOLE[:-1], "0 main rows and 1 rotations are missing, first index 1000003"),
        ([*_WHOLE[:2], *_WHOLE[3:]], "1 main rows and 0 rotations are missing, first index 2"),
        ([_WHOLE[1], _WHOLE[3], _WHOLE[4]], "2 main rows and 1 rotations are missing, first index 1, 2, 1000003"),
        (
            [_row(1, prediction="A"), _turned(10**6 + 1, prediction="A")],
            "1 rotations are missing, first index 1000001",
        ),
        (
            [*_WHOLE, _row(4), _row(10**6 + 4, prediction="A"), _row(5), _turned(5, A="cow"), _row(6), _turned(6, "A")],
            "3 rows are no rotations of their question (other options, another right one, or the same order), first "
            "index 1000004, 1000005, 1000006",
        ),
        ([*_WHOLE, _WHOLE[0]], "1 ids occur more than once, first 1"),
        ([], "holds no rows"),
        ([_row(1)], "no column 'prediction'"),
        ([_row(1, prediction=""), _row(2, prediction="")], "all 2 answers are empty"),
        ([_row(1, prediction="nan"), _row(2, prediction=" ")], "all 2 answers are empty"),
        ([_row(1, "C", "A")], "field 'answer': 'C' is none of A, B"),
        ([_row(1, "", "A"), _row(2, "nan", "A")], "2 of 2 questions have no answer, first 1, 2"),
        ([_row(1, prediction="A", B="")], "options A; A, B and so on are wanted"),
        ([_row(1, prediction="A", D="fox")], "options A, B, D; A, B and so on are wanted without a gap"),
        ([_row(1, prediction="A") | {"index": "x"}], "field 'index': a whole number is wanted, not 'x'"),
        ([{"question": "q", "A": "a", "B": "b"}], "no column 'index'; MMBench has index, question, A"),
        ([{"index": "1", "question": "q", "A": "a", "answer": "A"}], "no column 'B'"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, str]], message: str
) -> None:
    path = _tsv(tmp_path / "all.tsv", rows)
    assert run(["score", "mmbench", str(path), "--truth", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_answers_that_are_missing_or_too_many_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = _tsv(tmp_path / "truth.tsv", _WHOLE)
    answers = _tsv(tmp_path / "answers.tsv", [_WHOLE[0], *_WHOLE[2:]])
    assert run(["score", "mmbench", str(answers), "--truth", str(truth)]) == 2
    assert "1 of 6 ids have no prediction, first 1000001" in capsys.readouterr().err
    wrong = tmp_path / "answers.json"
    wrong.write_text("[]")
    assert run(["score", "mmbench", str(wrong), "--truth", str(truth)]) == 2
    assert "a .tsv or .xlsx file is wanted" in capsys.readouterr().err


def test_what_is_there_is_scored_by_lmms_eval_and_in_russian() -> None:
    items = [*_rotated(1, "A"), *_rotated(2, "A")[:2], *_rotated(3, "A")[1:]]
    answers = {item.question_id: item.answers[0] for item in items} | {"1000002": "none"}
    # the published Russian set lacks every tenth row, and published scores are of what is left
    for outcome in (score(MMBENCH, items, answers, "lmms-eval"), score(MMBENCH_RU, items, answers)):
        found = [outcome.metrics[name] for name in ("questions", "rows", "missing_rows")]
        assert (found, outcome.score) == ([2, 7, 2], 0.5)
    for task, scorer in ((MMBENCH, "lmms-eval"), (MMBENCH_RU, "")):
        with pytest.raises(BadInput, match="no main rows"):
            score(task, items[6:], {i.question_id: "A" for i in items[6:]}, scorer)


def test_an_option_that_stays_last_has_no_rotation() -> None:
    # as in 53 questions of the official dev file
    none = "None of these"
    turns = [("a", "b", "c", none), ("c", "a", "b", none), ("b", "c", "a", none)]
    fixed = [_item(options, 7 + 10**6 * k, "D") for k, options in enumerate(turns)]
    whole = [_item(_OPTIONS[k:] + _OPTIONS[:k], 8 + 10**6 * k, "ADCB"[k]) for k in range(4)]
    MMBENCH.check([*fixed, *whole])
    MMBENCH.check([*fixed[:1], *whole[:1]])
    for lacking, first in ((whole[:3], "3000008"), (whole[1:], "8; "), ([whole[0], *whole[2:]], "1000008")):
        with pytest.raises(BadInput, match=f"first index {first}"):
            MMBENCH.check([*fixed, *lacking])
    with pytest.raises(BadInput, match="first index 2000007"):
        MMBENCH.check([*fixed[:2], *whole])


def test_an_index_far_away_makes_no_millions_of_rotations() -> None:
    with pytest.raises(BadInput, match="0 main rows and 2 rotations are missing, first index 1000001, 1000002"):
        MMBENCH.check([_item(("a", "b"), 1), _item(("b", "a"), 10**12 - 10**6 + 1, "B"), _item(("a", "b"), 2)])


@pytest.mark.parametrize("name", ["out.tsv", "out.xlsx"])
def test_submission_reads_back_as_it_was(tmp_path: Path, name: str) -> None:
    if name.endswith("xlsx"):
        pytest.importorskip("openpyxl")
    truth = _tsv(tmp_path / "truth.tsv", [_row(1, "nan"), _row(2, "nan", C="=1+1", D="five")])
    # the test split has no public answers
    items, answers = (
        MMBENCH.read(truth, None),
        {"1": '=SUM(A1)\t"B"\nC', "2": "№\r1" if name.endswith("tsv") else "№ 1"},
    )
    assert MMBENCH.submit
    MMBENCH.submit(items, answers, tmp_path / name)
    assert read_predictions(MMBENCH, [tmp_path / name]) == answers
    again = MMBENCH.read(tmp_path / name, None)
    assert [(i.question_id, i.question, i.options, i.answers) for i in again] == [
        (i.question_id, i.question, i.options, i.answers) for i in items
    ]
    with pytest.raises(BadInput, match=r"MMBench takes \.xlsx or \.tsv"):
        MMBENCH.submit(items, answers, tmp_path / "out.csv")


def test_shards_and_the_table_give_one_score_and_interval(tmp_path: Path) -> None:
    rows = []
    for number in range(1, 6):
        png = BytesIO()
        Image.new("RGB", (32, 32), (number, 0, 0)).save(png, "PNG")
        picture = base64.b64encode(png.getvalue()).decode()
        rows += [_row(number, image=picture), _row(10**6 + number, "B", A="dog", B="cat", image=str(number))]
    # a question about another one's picture
    rows += [_row(9, image="1"), _turned(9, image="1")]
    table = _tsv(tmp_path / "dev.tsv", rows)
    build(find_reader("mmbench"), ReaderOptions(input=table, split="dev"), tmp_path / "shards")
    answers = {str(k * 10**6 + i): "AB"[k if i % 2 else 0] for i in (1, 2, 3, 4, 5, 9) for k in (0, 1)}
    found = [score(MMBENCH, read_truth(MMBENCH, truth), answers) for truth in (table, tmp_path / "shards")]
    assert [outcome.score for outcome in found] == [4 / 6] * 2
    bounds = [interval(outcome) for outcome in found]
    assert bounds[0] == bounds[1] and bounds[0] and bounds[0].images == 5


@pytest.mark.parity
@pytest.mark.skipif(not PYTHON, reason=MISSING)
def test_parity_with_lmms_eval() -> None:
    def rows(items: list[Item], answers: dict[str, str]) -> list[dict[str, Any]]:
        labels = {"category": "x", "L2-category": "y", "question": "q", "split": "dev"}
        return [
            {"index": i.details["index"], "prediction": answers[i.question_id].strip(), "answer": i.answers[0],
             **labels, **dict(zip("ABCDE", (*i.options, *["nan"] * 4), strict=False))}
            for i in items
        ]  # fmt: skip

    there = "lmms_eval.tasks.mmbench.mmbench_evals:MMBench_Evaluator.eval_result"
    whole = [item for number in range(3) for item in _rotated(number, "A")]
    said = st.sampled_from(["A", "B", "C", "The answer is B", "cat", "a dog", "red bird", ""])
    with lmms_eval() as call:

        @settings(max_examples=60)
        @given(st.lists(said, min_size=9, max_size=9), st.sets(st.integers(1, 8)))
        def agrees(answers: list[str], lost: set[int]) -> None:
            # rows that are lost are of any kind, but for one main row
            items = [item for number, item in enumerate(whole) if number not in lost]
            given_ = {item.question_id: answers[number] for number, item in enumerate(whole) if item in items}
            overall, _, _ = call(there, rows(items, given_), "static")
            assert score(MMBENCH, items, given_, "lmms-eval").score == overall

        agrees()
