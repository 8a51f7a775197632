"""GQA and GQA-ru: the official comparison, LLaVA's, lmms-eval's, and the Russian one."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.cli import run
from shards.readers.gqa import gqa_question
from tests.vlm.lmms_bridge import MISSING, PYTHON, lmms_eval
from vlm.eval.score import score
from vlm.eval.tasks import find_task
from vlm.eval.tasks.base import Item


def _question(answer: str, structural: str = "query", semantic: str = "attr", **more: Any) -> dict[str, Any]:
    fields = {"imageId": "n1", "question": "What is it?", "answer": answer, "fullAnswer": "It is.", "isBalanced": True}
    types = {"structural": structural, "semantic": semantic, "detailed": "what"}
    return fields | {"types": types, "groups": {"global": None, "local": None}} | more


def _write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def _right(answer: str, prediction: str, scorer: str, task: str = "gqa") -> bool:
    return bool(score(find_task(task), [Item("1", "n1", "", (answer,))], {"1": prediction}, scorer).score)


@pytest.mark.parametrize(
    ("answer", "prediction", "right"),
    [
        ("yes", "yes", ("official", "llava", "lmms-eval")),
        ("yes", "Yes", ("llava", "lmms-eval")),
        ("yes", "Yes.", ("llava", "lmms-eval")),
        ("yes", "yes...", ("llava", "lmms-eval")),
        ("yes", " yes", ("lmms-eval",)),
        ("yes", "yes. ", ("lmms-eval",)),
        ("yes", "yes !", ()),
        ("Yes", "yes", ("lmms-eval",)),
        ("yes ", "yes", ()),
        ("t-shirt", "tshirt", ("lmms-eval",)),
        ("yes", "yes, it is", ()),
        ("", "", ("official", "llava", "lmms-eval")),
        ("", "?", ("lmms-eval",)),
    ],
)
def test_what_each_scorer_takes_for_equal(answer: str, prediction: str, right: tuple[str, ...]) -> None:
    for scorer in ("official", "llava", "lmms-eval"):
        assert _right(answer, prediction, scorer) == (scorer in right), scorer


def _steps(*steps: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"operation": operation, "argument": argument, "dependencies": []} for operation, argument in steps]


def _official_files(tmp_path: Path) -> tuple[Path, Path]:
    questions = {
        "01": _question("red", groups={"global": "color", "local": None})
        | {"semantic": _steps(("select", "car (1)"), ("query", "color"))},
        "02": _question("blue", groups={"global": "color", "local": None})
        | {"semantic": _steps(("select", "car (1)"), ("filter", "old"), ("query", "name"))},
        "03": _question("yes", "verify", "obj", question="Is there a very old car?")
        | {"semantic": _steps(("select", "car (1)"), ("filter", "old"), ("exist", "?"))},
        "04": _question("no", "logical", "obj") | {"semantic": _steps(("select", "car (1)"), ("choose name", "a|b"))},
        "05": _question("no", "logical", "obj", isBalanced=False),
    }
    predictions = {"01": "red", "02": "red", "03": "yes", "04": "No"}
    rows = [{"questionId": name, "prediction": prediction} for name, prediction in predictions.items()]
    return _write(tmp_path / "questions.json", questions), _write(tmp_path / "predictions.json", rows)


def test_official_files_give_the_official_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, predictions = _official_files(tmp_path)
    command = ["score", "gqa", "--truth", str(truth), "--predictions", str(predictions), "--json"]
    assert run(command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["score"], shown["n"], shown["scorer"]) == (0.5, 4, "official")
    assert shown["metrics"] == {
        "accuracy": 50.0,
        "binary": 50.0,
        "open": 50.0,
        "accuracyPerStructuralType": {
            "logical": {"n": 1, "accuracy": 0.0},
            "query": {"n": 2, "accuracy": 50.0},
            "verify": {"n": 1, "accuracy": 100.0},
        },
        "accuracyPerSemanticType": {"attr": {"n": 2, "accuracy": 50.0}, "obj": {"n": 2, "accuracy": 50.0}},
        "accuracyPerSteps": {"1": {"n": 1, "accuracy": 0.0}, "2": {"n": 3, "accuracy": 66.67}},
        "accuracyPerLength": {"3": {"n": 3, "accuracy": 33.33}, "6": {"n": 1, "accuracy": 100.0}},
        # red twice for once, blue never for once: (1 + 1) × 2 questions / 2 questions / 100
        "distribution": 0.02,
    }
    assert run([*command, "--scorer", "lmms-eval"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == 75.0


def test_questions_without_a_type_are_counted() -> None:
    typed = Item("1", "n1", "", ("red",), details={"types": {"structural": "query"}})
    outcome = score(find_task("gqa"), [typed, Item("2", "n1", "", ("no",))], {"1": "red", "2": "yes"})
    assert (outcome.metrics["open"], outcome.metrics["untyped"]) == (100.0, 1)


def test_only_balanced_questions_count_answered_or_not(tmp_path: Path) -> None:
    truth, predictions = _official_files(tmp_path)
    task = find_task("gqa")
    items, answers = task.read(truth, None), task.read_predictions(predictions)
    assert len(items) == 5
    assert score(task, items, answers).score == score(task, items, answers | {"05": "no"}).score == 0.5


def test_questions_of_shards_are_scored_alike() -> None:
    question = gqa_question("file", "01", _question("red")).turn.question
    outcome = score(find_task("gqa"), [Item.of(question, "key", "en")], {"01": "red"})
    assert outcome.metrics["open"] == 100.0
    assert outcome.metrics["accuracyPerSemanticType"] == {"attr": {"n": 1, "accuracy": 100.0}}


def test_gqa_ru_is_read_as_json_json_lines_and_parquet(tmp_path: Path) -> None:
    task = find_task("gqa-ru")
    rows = [{"id": "01", **_question("красный")}, {"id": "02", **_question("да", "verify", "obj")}]
    files = [
        _write(tmp_path / "object.json", {row["id"]: row for row in rows}),
        _write(tmp_path / "list.json", rows),
        _write(tmp_path / "lines.jsonl", "\n".join(json.dumps(row) for row in rows)),
        tmp_path / "table.parquet",
    ]
    pq.write_table(pa.Table.from_pylist(rows), files[-1])
    read = [task.read(file, None) for file in files]
    assert all(items == read[0] for items in read)
    assert [(item.question_id, item.image, item.answers, item.type, item.lang) for item in read[0]] == [
        ("01", "n1", ("красный",), "query", "ru"),
        ("02", "n1", ("да",), "verify", "ru"),
    ]


@pytest.mark.parametrize(
    ("answer", "prediction", "right"),
    [
        ("ёлка", "Елка.", True),
        ("«красный»", "красный", True),
        ("тёмно-синий", "темно — синий", True),
        ("стол", "столы", True),
        ("стол", "столе", True),
        ("красный", "красная", True),
        ("белый", "белого", True),
        ("человек", "люди", True),
        ("ребёнок", "дети", True),
        ("утро", "утром", True),
        ("два", "2", True),
        ("две", "двух", True),
        ("красная машина", "красные машины", True),
        ("банк", "банка", False),
        ("да", "нет", False),
        ("мужчина", "женщина", False),
        ("стол", "на столе", False),
        ("слева", "справа", False),
        ("2", "3", False),
        ("да", "", False),
    ],
)
def test_russian_answers_are_equal_in_any_form(answer: str, prediction: str, right: bool) -> None:
    pytest.importorskip("pymorphy3")
    assert _right(answer, prediction, "russian", "gqa-ru") == right


@given(st.text(max_size=12))
def test_a_russian_answer_equals_itself_and_its_own_words(answer: str) -> None:
    pytest.importorskip("pymorphy3")
    assert _right(answer, f"«{answer}» —", "russian", "gqa-ru")


def test_the_russian_scorer_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    from vlm.eval.tasks import russian

    monkeypatch.setitem(sys.modules, "pymorphy3", None)
    russian._analyser.cache_clear()
    russian._lemmas.cache_clear()
    truth = _write(tmp_path / "truth.json", {"01": _question("стол")})
    predictions = _write(tmp_path / "predictions.json", [{"questionId": "01", "prediction": "столы"}])
    command = ["score", "gqa-ru", "--truth", str(truth), "--predictions", str(predictions), "--scorer", "russian"]
    assert run(command) == 2
    needs = 'vlm: scorer russian: inflection needs pymorphy3, which is not installed: pip install "ruvlm[eval]"\n'
    assert capsys.readouterr() == ("", needs)
    # the first of several prints nothing either
    assert run([*command[:-1], "official,russian"]) == 2
    assert capsys.readouterr() == ("", needs)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert run(["score", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_bad_files_end_in_one_line_that_names_the_first_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, predictions = _official_files(tmp_path)
    rows = json.loads(predictions.read_text("utf-8"))
    command = ("gqa", "--truth", truth, "--predictions")
    fewer = _write(tmp_path / "fewer.json", rows[2:])
    assert "2 of 5 ids have no prediction, first 01, 02" in _refused(capsys, *command, fewer)
    more = _write(tmp_path / "more.json", [*rows, {"questionId": "99", "prediction": ""}])
    assert "1 of 6 ids are no questions of this set, first 99" in _refused(capsys, *command, more)
    twice = _write(tmp_path / "twice.json", [*rows, rows[3]])
    assert "1 ids occur more than once, first 04" in _refused(capsys, *command, twice)
    assert "holds no rows" in _refused(capsys, *command, _write(tmp_path / "empty.json", []))
    vqav2 = _write(tmp_path / "vqav2.json", [{"question_id": 1, "answer": "cat"}])
    assert "'questionId'" in _refused(capsys, *command, vqav2)
    one = json.dumps(_question("x"))
    same = _write(tmp_path / "same.json", f'{{"01": {one}, "01": {one}}}')
    assert "first 01" in _refused(capsys, "gqa", "--truth", same, "--predictions", predictions)
    annotations = _write(tmp_path / "annotations.json", {"info": {}, "annotations": [{"question_id": 1}]})
    assert "is it GQA's file" in _refused(capsys, "gqa", "--truth", annotations, "--predictions", predictions)
    lists = _write(tmp_path / "lists.json", {"01": _question("x", types={"structural": ["query"]})})
    message = _refused(capsys, "gqa", "--truth", lists, "--predictions", predictions)
    assert "question 01: field 'types': field 'structural': a text is wanted" in message
    missing = ("gqa", "--truth", tmp_path / "none.json", "--predictions", predictions)
    assert "cannot be read" in _refused(capsys, *missing)
    unbalanced = _write(tmp_path / "unbalanced.json", {"01": _question("x", isBalanced=False)})
    assert "none of the 1 questions counts" in _refused(capsys, "gqa", "--truth", unbalanced, "--predictions", fewer)


def test_a_submission_is_read_back(tmp_path: Path) -> None:
    task = find_task("gqa")
    assert task.submit is not None
    task.submit([Item("01", "n1", "", ("red",))], {"01": "Red."}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == [{"questionId": "01", "prediction": "Red."}]
    assert task.read_predictions(tmp_path / "out.json") == {"01": "Red."}


@pytest.mark.parity
@pytest.mark.skipif(not PYTHON, reason=MISSING)
def test_scores_are_those_of_lmms_eval() -> None:
    # its arrays of texts lose NULs at the end
    anything = st.characters(codec="utf-8", exclude_characters="\0")
    text = st.text(st.sampled_from("abAB .,!-_«ё\t"), max_size=6) | st.text(anything, max_size=6)
    with lmms_eval() as call:

        @given(text, text, st.booleans())
        def agree(answer: str, other: str, repeat: bool) -> None:
            prediction = f" {answer.upper()}." if repeat else other
            keywords = {"ignore_case": True, "ignore_punctuation": True}
            pair = {"predictions": [prediction.strip()], "references": [answer]}  # its harness strips the first
            theirs = call("lmms_eval.api.metrics:exact_match_fn", **pair, **keywords)["exact_match"]
            assert _right(answer, prediction, "lmms-eval") == bool(theirs)

        agree()
