"""RUN/eval/NAME read again: what is refused, and the submission file made of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import sha256_file
from tests.eval_files import Told, evaluation, lines
from tests.vlm.told import eight, rotations
from vlm.eval.folder import EvaluationFolder


def change(folder: Path, **fields: Any) -> None:
    """Fields of result.json; None leaves one out."""
    path = folder / "result.json"
    result = {name: value for name, value in (json.loads(path.read_text()) | fields).items() if value is not None}
    path.write_text(json.dumps(result))


def reseal(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Other answers, and a result that knows them."""
    change(folder, predictions=sha256_file(lines(folder / "predictions.jsonl", *rows)), n=len(rows))


def test_what_it_holds(english: Path, tmp_path: Path) -> None:
    found = EvaluationFolder.of(evaluation(tmp_path / "a", english, wrong=[1], prompt="{q}", lang="ru"))
    assert (found.task.name, found.scorer, found.scored, found.protocol) == ("exact", "exact-match", True, "direct")
    assert (found.lang, found.prompt, found.generation, found.whole) == ("ru", "{q}", {}, True)
    first, second, *_ = found.rows
    assert (first.correct, second.correct, second.answer.prediction) == (True, False, "nothing")
    assert (second.answer.cut, second.answer.refused, second.untranslated) == (False, False, None)
    assert [item.question_id for item in found.items()] == list(found.predictions)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": None}, "'dataset' should be of type dict"),
        ({"dataset": {"path": 1, "digest": ""}}, "'path' should be of type str"),
        ({"task": ["exact"]}, "'task' should be of type str"),
        ({"generation": "greedy"}, "'generation' should be of type dict"),
    ],
)
def test_a_result_that_is_none_is_refused(fields: dict[str, Any], message: str, english: Path, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "a", english)
    change(folder, **fields)
    with pytest.raises(BadInput, match=f"result.json: {message}.*; run `vlm eval` again"):
        EvaluationFolder.of(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question_id": None}, "field 'question_id': an id is wanted"),
        ({"question_id": "train-0-1"}, "1 ids occur more than once, first train-0-1"),
        ({"prediction": 5}, "field 'prediction': a text is wanted"),
        ({"answers": None}, "'answers' should be a list of texts"),
        ({"answers": [1]}, "'answers' should be a list of texts"),
        ({"type": 1}, "'type' should be a text"),
        ({"untranslated": 1}, "'untranslated' should be a text"),
        ({"correct": "yes"}, "'correct' should be true or false"),
        ({"cut": 1}, "'cut' should be true or false"),
    ],
)
def test_rows_that_are_none_are_refused(
    fields: dict[str, Any], message: str, english: Path, tmp_path: Path, vlm: Callable[..., Told]
) -> None:
    a, b = (evaluation(tmp_path / name, english) for name in "ab")
    first, *rest = [json.loads(line) for line in (b / "predictions.jsonl").read_text().splitlines()]
    reseal(b, [first | fields, *rest])
    code, out, told = vlm("compare", a, b)
    assert (code, out) == (2, "") and message in told


def test_answers_of_another_result_are_refused(english: Path, tmp_path: Path, vlm: Callable[..., Told]) -> None:
    a, b = (evaluation(tmp_path / name, english) for name in "ab")
    (b / "predictions.jsonl").write_text((b / "predictions.jsonl").read_text() + "\n")
    assert not EvaluationFolder.of(b).whole
    assert "predictions.jsonl: not the answers that result.json was made from" in vlm("compare", a, b)[2]
    (b / "predictions.jsonl").unlink()
    assert "predictions.jsonl: cannot be read (No such file or directory)" in vlm("compare", a, b)[2]
    c = evaluation(tmp_path / "c", english, n=5)
    assert "result.json: 'n' is not the 248 of predictions.jsonl" in vlm("compare", a, c)[2]
    # questions that the scorer left out are not among the n
    first, *rest = [json.loads(line) for line in (c / "predictions.jsonl").read_text().splitlines()]
    del first["correct"]
    reseal(c, [first, *rest])
    change(c, n=247)
    assert vlm("compare", a, c)[0] == 0


def test_shards_of_a_name_too_long_are_gone(vlm: Callable[..., Told], english: Path, tmp_path: Path) -> None:
    a, b = (
        evaluation(tmp_path / name, english, dataset={"path": "x" * 5000, "digest": ShardDataset.open(english).digest})
        for name in "ab"
    )
    code, out, told = vlm("compare", a, b)
    assert (code, out, told.count("\n")) == (2, "", 1) and "say where with --truth" in told
    assert vlm("compare", a, b, "--truth", english)[0] == 0
    assert vlm("score", "exact", a / "predictions.jsonl", "--truth", "x" * 5000)[0] == 2


def test_a_text_too_long_for_a_cell_is_not_cut(vlm: Callable[..., Told], tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    folder = evaluation(tmp_path / "x", eight(tmp_path / "data", rotations), task="mmbench", scorer="official")
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    reseal(folder, [row | {"prediction": "A" * (32_768 if row["question_id"] == "3" else 32_767)} for row in rows])
    code, _, told = vlm("submit", folder, "--out", tmp_path / "a.xlsx")
    assert code == 2 and not (tmp_path / "a.xlsx").exists()
    assert told == (
        "vlm: index 3: column 'prediction': 32768 characters, a cell of .xlsx holds 32767; name a .tsv file\n"
    )
    assert vlm("submit", folder, "--out", tmp_path / "a.tsv")[0] == 0


def test_submission_of_an_evaluation(vlm: Callable[..., Told], english: Path, tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "x", english, task="vqav2", scorer="official", score=None)
    answers = list(EvaluationFolder.of(folder).predictions.values())
    out = tmp_path / "results.json"
    assert vlm("submit", folder, "--out", out) == (0, f"{out}: {len(answers)} answers\n", "")
    assert [row["answer"] for row in json.loads(out.read_text())] == answers
    code, _, told = vlm("submit", folder, "--out", tmp_path / "no" / "results.json")
    assert code == 2 and "there is no folder" in told
    code, _, told = vlm("submit", folder, "--out", tmp_path)
    assert code == 2 and "is no plain file" in told
    code, _, told = vlm("submit", folder, "--out", tmp_path / "results.tsv")
    assert code == 2 and "takes a .json file" in told
    change(folder, task="exact")
    code, _, told = vlm("submit", folder, "--out", out)
    assert code == 2 and "task exact has no official submission file" in told
