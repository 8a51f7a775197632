"""`vlm score`: what it prints, what it reads; the page's own task."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import scores
from shards.dataset import ShardDataset
from shards.errors import BadInput
from tests.eval_files import Told, lines
from vlm.eval.score import items_of, without_answer
from vlm.eval.tasks import TASKS, find_task
from vlm.eval.tasks.base import Item, Mark, Outcome, Task, mean_outcome

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture
def answers(english: Path, tmp_path: Path) -> Path:
    """A prediction file for `english`, all but the first answer right."""
    items = items_of(ShardDataset.open(english))
    rows = [{"question_id": item.question_id, "prediction": item.answers[0]} for item in items]
    return lines(tmp_path / "answers.jsonl", rows[0] | {"prediction": "?"}, *rows[1:])


def test_json_has_score_metrics_scorer_and_interval(vlm: Callable[..., Told], english: Path, answers: Path) -> None:
    code, out, _ = vlm("score", "exact", "--truth", english, "--predictions", answers, "--json")
    found = json.loads(out)
    n = found["n"]
    assert code == 0 and found["score"] == pytest.approx((n - 1) / n)
    assert list(found) == ["task", "score", "n", "metrics", "scorer", "interval"]
    assert (found["task"], found["scorer"]) == ("exact", "exact-match") and "by_type" in found["metrics"]
    span = found["interval"]
    assert list(span) == ["low", "high", "level", "resamples", "images"]
    assert span["low"] < found["score"] < span["high"] <= 1 and span["images"] == 24 and span["level"] == 0.95


def test_text_has_the_figures_and_their_interval(vlm: Callable[..., Told], english: Path, answers: Path) -> None:
    code, out, _ = vlm("score", "exact", answers, "--truth", english)
    first, *rest = out.splitlines()
    assert code == 0 and re.match(
        r"exact: 0\.9\d+ on \d+ questions \(exact-match\), 95 % interval .* over 24 images", first
    )
    assert any(re.fullmatch(r"  by_type/shape/score [\d.]+", line) for line in rest)


def test_a_terminal_gets_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scores.sys.stdout, "isatty", lambda: True, raising=False)
    groups = {"random": {"f1": 0.5, "n": 3}, "popular": {"f1": 0.25, "n": 3}}
    scores.print_metrics({"mean_f1": 0.375, "files": groups, "odd": {"a": {"b": 1}, "c": 2}})
    out = capsys.readouterr().out
    assert re.search(r"mean_f1 +│ +0\.375", out) and re.search(r"popular +│ +0\.25 +│ +3", out)
    assert "files" in out and re.search(r"│ c +│ 2", out) and re.search(r"│ b +│ 1", out) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_names_from_files_cannot_steer_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scores.sys.stdout, "isatty", lambda: terminal, raising=False)
    scores.print_metrics({"by_type": {"[/red]": {"n": 1}, "\x1b[2Jx": {"n": 2}}})
    out = capsys.readouterr().out
    assert "[/red]" in out and "\x1b[2J" not in out


def test_several_scorers_at_once(vlm: Callable[..., Told], tmp_path: Path) -> None:
    rows = [{"question_id": 1, "tuple": [8, 6]}, {"question_id": 2, "content": "8 6 "}]
    path = lines(tmp_path / "r.jsonl", *rows)
    code, out, _ = vlm("score", "llava-bench", path, "--scorer", "official, llava", "--json")
    found = json.loads(out)
    assert code == 0 and found["scorer"] == "official" and found["score"] == 0.75
    assert found["scorers"]["llava"]["score"] == pytest.approx(5 / 7)
    code, _, told = vlm("score", "llava-bench", path, "--scorer", "kind")
    assert code == 2 and told == "vlm: scorer 'kind': llava-bench has none of that name; known: official, llava\n"
    code, _, told = vlm("score", "llava-bench", path, "--scorer", "oficial")
    assert code == 2 and told.endswith("; did you mean official?\n")


def test_one_file_may_hold_both(vlm: Callable[..., Told], english: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", {"question_id": 1, "tuple": [8, 6]}, {"question_id": 2, "tuple": [8, 8]})
    for given in (["--truth", path], ["--predictions", path], [path], [path, "--truth", path]):
        code, out, _ = vlm("score", "llava-bench", *given, "--json")
        assert code == 0 and json.loads(out)["score"] == 0.875
    assert vlm("score", "exact", path)[::2] == (
        2, "vlm: --truth: missing; name the official file with the answers, or a folder of shards\n",
    )  # fmt: skip
    assert vlm("score", "exact", "--truth", english)[::2] == (2, "vlm: vlm score: no predictions; name their files\n")


def test_help_names_every_task_and_scorer(vlm: Callable[..., Told]) -> None:
    code, out, _ = vlm("score", "--help")
    assert code == 0
    for name, task in TASKS.items():
        assert re.search(rf"^  {name} +{next(iter(task.scorers))}", out, re.MULTILINE), name


def test_answers_of_an_evaluation_are_taken_by_every_task(
    vlm: Callable[..., Told], english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlike(path: Path) -> dict[str, str]:
        raise BadInput(f"{path}: not the official form")

    monkeypatch.setitem(TASKS, "odd", replace(find_task("exact"), name="odd", read_predictions=unlike))
    rows = [
        {
            "question_id": item.question_id, "key": item.image, "question": item.question,
            "prediction": item.answers[0], "answers": list(item.answers), "type": None,
        }
        for item in items_of(ShardDataset.open(english))
    ]  # fmt: skip
    path = lines(tmp_path / "predictions.jsonl", *rows)
    code, out, _ = vlm("score", "odd", path, "--truth", english, "--json")
    assert code == 0 and json.loads(out)["score"] == 1
    # of two files each question may be in one
    code, _, told = vlm("score", "odd", path, path, "--truth", english)
    assert code == 2 and f"{len(rows)} questions are answered in another file too" in told


def _yes_unless_no(items: list[Item], predictions: dict[str, str]) -> Outcome:
    said = {name: "no" if "no" in text.split() else "yes" for name, text in predictions.items()}
    marks = [Mark(q, "", said[q.question_id], float(said[q.question_id] in q.answers)) for q in items]
    return mean_outcome("lenient", marks, {})


def test_a_lost_answer_is_wrong_even_where_nothing_counts_as_yes() -> None:
    task = Task("t", {"lenient": _yes_unless_no, "again": _yes_unless_no}, lambda *_: [], lambda _: {})
    items = [Item(str(i), str(i), "?", ("yes" if i % 2 else "no",)) for i in range(6)]
    said = dict.fromkeys(map(str, range(6)), "no")
    changed = without_answer(task, items, said, {"0", "1", "3"}, ["lenient", "again"])
    # 0 had been right, 1 and 3 were wrong anyhow
    assert changed == {**said, "0": ""}
    assert without_answer(task, items, dict.fromkeys(said, "?"), {"1"}, ["lenient"])["1"] == "no"
    # where none is lost nothing is scored
    assert without_answer(replace(task, scorers={}), items, said, (), ["gone"]) == said


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("llava-bench", "a judge rates them: `vlm judge review`, see docs/judge.md"),
        ("vqav2", "right ones are not public: `vlm submit` writes the official file"),
        ("exact", "right ones are not public: task exact has no official file to submit"),
    ],
)
def test_an_evaluation_without_a_score_says_what_comes_next(
    task: str, line: str, vlm: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = SimpleNamespace(name="x", task=task, n=7, empty=0, score=None, scorer="official", interval=None)
    monkeypatch.setattr("vlm.eval.run.evaluate", lambda *_: result)
    assert vlm("eval", "demo", f"run={tmp_path}")[:2] == (0, f"x: 7 answers; {line}\n")


# the page


def test_the_task_of_the_page(tmp_path: Path, vlm: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "counting"}
    exec(code, names)
    assert len(code.splitlines()) <= 60
    task = names["COUNTING"]
    monkeypatch.setitem(TASKS, task.name, task)
    truth = lines(
        tmp_path / "truth.jsonl",
        {"question_id": 1, "image": "a.jpg", "question": "How many cats?", "count": 2},
        {"question_id": 2, "image": "a.jpg", "question": "How many dogs?", "count": 12},
        {"question_id": 3, "image": "b.jpg", "question": "How many cats?", "count": 0},
    )
    given = [{"question_id": 1, "prediction": "two (2)"}, {"question_id": 2, "prediction": "13 dogs"}]
    path = lines(tmp_path / "p.jsonl", *given, {"question_id": 3, "prediction": "none"})
    exact = json.loads(vlm("score", "counting", path, "--truth", truth, "--json")[1])
    assert (exact["score"], exact["scorer"], exact["n"]) == (pytest.approx(1 / 3), "exact", 3)
    near = json.loads(vlm("score", "counting", path, "--truth", truth, "--scorer", "within-one", "--json")[1])
    assert near["score"] == pytest.approx(2 / 3) and near["metrics"]["no_number"] == 1
    lines(truth, {"question_id": 1, "image": "a.jpg", "question": "?", "count": "two"})
    code, _, told = vlm("score", "counting", path, "--truth", truth)
    assert code == 2 and "field 'count'" in told


def test_the_page_lists_every_task_and_scorer() -> None:
    page = PAGE.read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.*)$", page, re.MULTILINE))
    for name, task in TASKS.items():
        assert name in rows, name
        assert [each for each in task.scorers if f"`{each}`" not in rows[name]] == [], name


def test_find_task_names_the_tasks(vlm: Callable[..., Told]) -> None:
    code, _, told = vlm("score", "vqa", "x", "--truth", "y")
    assert code == 2 and told == "vlm: task 'vqa' is unknown; did you mean vqav2?\n"
    code, _, told = vlm("score", "whatever", "x", "--truth", "y")
    assert code == 2 and told.startswith("vlm: task 'whatever' is unknown; known: ") and "vqav2" in told
    assert find_task("vqav2").name == "vqav2"
