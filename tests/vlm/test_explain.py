"""Evaluations explained: gains by scoring again and by asking again."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cli import run
from shards.files import sha256_file
from shards.prompts import prompts
from shards.sample import Question
from tests.vlm.told import eight, rotations, says
from vlm.eval.explain import BenchmarkOptimizer, words
from vlm.eval.explain.advice import Recommendation
from vlm.eval.tasks import find_task, russian
from vlm.report import write_report


def verify(i: int) -> list[Question]:
    return [Question(f"{i}", "is it?", ("yes",), "verify", (), None, {"isBalanced": True})]


@pytest.fixture
def ask(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command on an evaluation of `data`, answered by a function."""

    def command(name: str, data: Path, say: Callable[[Question], str], *more: str) -> int:
        says(monkeypatch, say)
        keys = [f"run={tmp_path / 'run'}", f"model.base={model}", f"eval.data={data}", "eval.max_new_tokens=0"]
        return run([name, "demo", *keys, "eval.name=test", *more])

    return command


def seal(folder: Path, **fields: Any) -> None:
    """Change an evaluation's result, and bind it to the answers as they are now."""
    path = folder / "result.json"
    digest = sha256_file(folder / "predictions.jsonl")
    path.write_text(json.dumps({**json.loads(path.read_text()), "predictions": digest, **fields}))


def test_gains_of_a_circular_score_are_found_by_scoring_again(ask: Callable[..., int], tmp_path: Path) -> None:
    data = eight(tmp_path / "data", rotations)

    def say(question: Question) -> str:
        i = int(question.question_id) % 10**6
        if i < 2:
            return question.answers[0]
        if i < 4 and int(question.question_id) > 10**6:
            return "an animal"
        return "AB".replace(question.answers[0], "") if i >= 6 else question.answers[0]

    assert ask("eval", data, say, "eval.task=mmbench") == 0
    found = BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test")
    assert {name: number for name, number in found.counts.items() if number} == {"letter missing": 2, "plain wrong": 4}
    # of 8 questions two lack one rotation each, two both; each is worth an eighth
    assert found.outcome is not None and found.outcome.score == 0.5
    assert found.at_most == {"letter missing": 25.0, "plain wrong": 25.0}
    assert "eval.constrain=true" in found.tries
    assert {each.scorer for each in found.rescored} == set(find_task("mmbench").scorers) - {"official"}


def test_another_way_to_ask_is_measured_below_the_evaluation(
    ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, task = eight(tmp_path / "data", rotations), "eval.task=mmbench"
    assert ask("explain", data, lambda q: "an animal", task) == 2
    assert "holds no result.json" in capsys.readouterr().err
    assert ask("eval", data, lambda q: "an animal", task) == 0
    assert ask("explain", data, lambda q: q.answers[0], task, "--measure", "--json") == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["causes"] == {"letter missing": 16}
    (trial,) = out["trials"]
    assert (trial["setting"], trial["gain"], trial["fixed"], trial["broken"]) == ("eval.constrain=true", 100.0, 16, 0)
    assert trial["interval"] == [100.0, 100.0] and trial["p_value"] < 0.001
    # answered already: nothing is asked again, and the evaluation itself stands
    fail = lambda q: pytest.fail("asked again")  # noqa: E731
    assert ask("explain", data, fail, task, "--measure") == 0
    assert "eval.constrain=true: 1.0000 in place of 0.0000, +100.00 points" in capsys.readouterr().out
    write_report(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "error_analysis.json").read_text())["results"]
    assert [each["name"] for each in report] == ["test"]
    assert report[0]["measured"]["trials"][0]["gain"] == 100.0
    for page in ("project_report.txt", "report.html"):
        assert "eval.constrain=true" in (tmp_path / "run" / page).read_text()
    # another setting of the evaluation itself: the trial no longer speaks of it
    predictions = tmp_path / "run" / "eval" / "test" / "predictions.jsonl"
    predictions.write_text(predictions.read_text().replace("an animal", "animals", 1))
    seal(predictions.parent)
    assert [trial.stale for trial in BenchmarkOptimizer.of(predictions.parent).trials] == [True]


@pytest.mark.parametrize("setting", ["eval.data=x", "constrain=true", "eval.constrain", "eval.name=../x"])
def test_only_ways_to_ask_can_be_tried(
    ask: Callable[..., int], tmp_path: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = eight(tmp_path / "data", rotations)
    assert ask("explain", data, lambda q: "A", "eval.task=mmbench", "--try", setting) == 2
    assert "--try" in capsys.readouterr().err


def test_another_recipe_than_the_evaluations_is_refused(
    ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, task = eight(tmp_path / "data", rotations), "eval.task=mmbench"
    assert ask("eval", data, lambda q: "A", task) == 0
    assert ask("explain", data, lambda q: "A", task, "eval.beams=2", "--try", "eval.constrain=true") == 2
    assert "run `vlm eval` with the same keys first" in capsys.readouterr().err


def test_normalisation_is_measured_by_the_other_scorers(ask: Callable[..., int], tmp_path: Path) -> None:
    data = eight(tmp_path / "data", verify)
    assert ask("eval", data, lambda q: "Yes." if q.question_id < "4" else "no", "eval.task=gqa") == 0
    found = BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test")
    assert {name: n for name, n in found.counts.items() if n} == {"normalisation": 4, "no for yes": 4}
    assert [(each.gain, each.fixed, each.broken) for each in found.rescored] == [(50.0, 4, 0)] * 2
    assert all(each.interval and each.interval.low < 0.5 == each.score < each.interval.high for each in found.rescored)
    (advice,) = [each for each in found.recommendations if each.cause == "normalisation"]
    assert advice.settings == ("eval.scorer=official,lmms-eval,llava",)


def test_only_what_can_be_done_here_is_advised(ask: Callable[..., int], tmp_path: Path) -> None:
    data = eight(tmp_path / "data", lambda i: [Question(f"{i}", "что?", ("кот",), "kind")], "ru")
    word = prompts()["word"]["ru"]

    def advised() -> tuple[Recommendation, str]:
        assert ask("explain", data, lambda q: "cat", f"eval.instruction={asked}") == 0
        found = BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test").recommendations
        write_report(tmp_path / "run")
        (entry,) = json.loads((tmp_path / "run" / "error_analysis.json").read_text())["results"]
        return found[0], entry["recommendations"][0]

    asked = "none"
    assert ask("eval", data, lambda q: "cat", f"eval.instruction={asked}") == 0
    advice, said = advised()
    assert advice.advice == "train on more dialogues in 'ru', or ask in that language"
    assert said.endswith(f"or ask in that language (data.mix). Set eval.instruction={word}")
    # asked so already
    asked = word
    shutil.rmtree(tmp_path / "run")
    assert ask("eval", data, lambda q: "cat", f"eval.instruction={asked}") == 0
    advice, said = advised()
    assert advice.advice == "train on more dialogues in 'ru'" and said.endswith(" in 'ru' (data.mix).")


def test_another_form_is_advised_where_it_can_be_asked_for(ask: Callable[..., int], tmp_path: Path) -> None:
    data, told = eight(tmp_path / "data", rotations), []
    for constrain in ("false", "true"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert ask("eval", data, lambda q: "an animal", "eval.task=mmbench", f"eval.constrain={constrain}") == 0
        (found,) = BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test").recommendations
        told.append((found.advice, found.tries))
    train = "train on questions with options"
    assert told == [(f"admit letters only; {train}", ("eval.constrain=true",)), (train, ())]


def test_libraries_are_told_to_be_quiet_before_they_are_imported(
    ask: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "")
    monkeypatch.delenv("TQDM_DISABLE")
    assert ask("explain", tmp_path, lambda q: "A") == 2
    assert os.environ["TQDM_DISABLE"] == "1"


def test_questions_of_a_task_about_images_that_came_without_one(ask: Callable[..., int], tmp_path: Path) -> None:
    data = eight(tmp_path / "data", verify, pictures=False)
    assert ask("eval", data, lambda q: "no", "eval.task=gqa") == 0
    assert BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test").counts["missing image"] == 8


def test_without_the_shards_the_answers_alone_are_explained(
    ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, task = eight(tmp_path / "data", rotations), "eval.task=mmbench"
    assert ask("eval", data, lambda q: "an animal", task) == 0
    there = data.rename(tmp_path / "elsewhere")
    found = BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test")
    assert str(data) in found.evaluation.gone and not found.rescored
    assert {name: n for name, n in found.counts.items() if n} == {"letter missing": 16}
    # what is lacking then is worth an error where explaining is all that was asked for
    capsys.readouterr()
    assert ask("explain", data, lambda q: "A", task) == 2
    assert f"no longer in {data}; say where with --truth" in capsys.readouterr().err
    assert ask("explain", data, lambda q: "A", task, "--truth", str(there), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["causes"], len(said["scorers"])) == ({"letter missing": 16}, len(find_task("mmbench").scorers) - 1)


def first_row(change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Callable[[list[str]], list[str]]:
    """Replace the first line of a file by what becomes of its object."""
    return lambda lines: [*map(json.dumps, change(json.loads(lines[0]))), *lines[1:]]


@pytest.mark.parametrize(
    ("change", "sealed", "said"),
    [
        (first_row(lambda row: [{**row, "prediction": "no"}]), False, "not the answers that result.json was made from"),
        (first_row(lambda row: [row, row]), True, "1 ids occur more than once, first 0"),
        (first_row(lambda row: []), True, "'n' is not the 7 of"),
        (first_row(lambda row: [{**row, "question_id": "zz"}]), True, "1 answers to no question of its shards"),
        (first_row(lambda row: [{**row, "prediction": None}]), True, "field 'prediction': a text is wanted"),
        (first_row(lambda row: [{**row, "prediction": 5}]), True, "field 'prediction': a text is wanted"),
        (first_row(lambda row: [{**row, "question_id": None}]), True, "field 'question_id'"),
        (first_row(lambda row: [{**row, "answers": None}]), True, "'answers'"),
        (lambda lines: [], True, "holds no rows"),
    ],
)  # fmt: skip
def test_answers_that_are_not_those_of_the_result_are_refused(
    ask: Callable[..., int], tmp_path: Path, change: Callable[[list[str]], list[str]], sealed: bool, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, folder = eight(tmp_path / "data", verify), tmp_path / "run" / "eval" / "test"
    assert ask("eval", data, lambda q: "yes", "eval.task=gqa") == 0
    answers = folder / "predictions.jsonl"
    answers.write_text("".join(line + "\n" for line in change(answers.read_text().splitlines())))
    if sealed:
        seal(folder)
    assert ask("explain", data, lambda q: "yes", "eval.task=gqa") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": "zz"}, "zz"),
        ({"task": "text"}, "scorer"),
        ({"scorer": "zz"}, "scorer 'zz'"),
        ({"score": None}, "right answers are not public"),
        ({"n": 5}, "'n' is not the 8 of"),
        ({"dataset": {"digest": "0"}}, "other questions than those of"),
        ({"dataset": None}, "'dataset'"),
        ({"generation": 5}, "'generation'"),
    ],
)
def test_a_result_that_does_not_hold_together_is_refused(
    ask: Callable[..., int], tmp_path: Path, fields: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = eight(tmp_path / "data", verify)
    assert ask("eval", data, lambda q: "yes", "eval.task=gqa") == 0
    if fields.get("dataset"):
        fields = {"dataset": {**fields["dataset"], "path": str(data)}}
    seal(tmp_path / "run" / "eval" / "test", **fields)
    assert ask("explain", data, lambda q: "yes", "eval.task=gqa") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_what_no_answer_can_earn_is_no_gain(ask: Callable[..., int], tmp_path: Path) -> None:
    """Two annotators of ten say what most say: min(1, k/3) over the ten leave-one-out subsets is 0.6 for k = 2."""
    said = ["cat", "cat", "dog", *"abcdefg"]

    def questions(i: int) -> list[Question]:
        return [Question(f"{i}", "what?", tuple(said), "other")]

    data = eight(tmp_path / "data", questions)
    answers = {"0": "cat", "1": "dog"}
    assert ask("eval", data, lambda q: answers.get(q.question_id, "bird"), "eval.task=vqav2") == 0
    found = BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test")
    counts = {name: n for name, n in found.counts.items() if n}
    assert counts == {"annotators differ": 1, "partly right": 1, "plain wrong": 6}
    assert found.at_most == pytest.approx({"annotators differ": 0, "partly right": 30 / 8, "plain wrong": 360 / 8})
    assert "annotators differ" not in {each.cause for each in found.recommendations}


@pytest.fixture
def without_pymorphy3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caches = (russian._analyser, russian._lemmas, words._has_morphology, words._inflected, words._is, words._groups_of)
    monkeypatch.setitem(sys.modules, "pymorphy3", None)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


def test_a_scorer_that_lacks_its_package_says_so(
    ask: Callable[..., int], tmp_path: Path, without_pymorphy3: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = eight(tmp_path / "data", lambda i: [Question(f"{i}", "что?", ("кот",), "query")], "ru")
    assert ask("eval", data, lambda q: "коты", "eval.task=gqa-ru") == 0
    assert ask("explain", data, lambda q: "", "eval.task=gqa-ru") == 0
    assert "scorer russian cannot be had: scorer russian: inflection needs pymorphy3" in capsys.readouterr().out
    found = BenchmarkOptimizer.of(tmp_path / "run" / "eval" / "test")
    write_report(tmp_path / "run")
    (entry,) = json.loads((tmp_path / "run" / "error_analysis.json").read_text())["results"]
    assert "pymorphy3" in entry["measured"]["unscored"]["russian"]
    assert list(found.unscored) == ["russian"] and "lmms-eval" in {each.scorer for each in found.rescored}


@pytest.mark.parametrize(
    ("task", "answers", "prior"),
    [
        # k of ten annotators earn min(1, k / 3) over the ten leave-one-out subsets: 0.6 for two
        ("vqav2", lambda i: ("cat",) * 10 if i < 2 else ("cat", "cat", *"bcdefghi"), (2 + 6 * 0.6) / 8),
        # official: raw strings are compared
        ("gqa", lambda i: ("Yes",) if i == 3 else ("yes",), 7 / 8),
    ],
)
def test_what_a_constant_answer_scores(
    ask: Callable[..., int], tmp_path: Path, task: str, answers: Callable[[int], tuple[str, ...]], prior: float
) -> None:
    data = eight(tmp_path / "data", lambda i: [Question(f"{i}", "what?", answers(i), "kind")])
    assert ask("eval", data, lambda q: "fish", f"eval.task={task}") == 0

    def told() -> tuple[dict[str, Any], str]:
        write_report(tmp_path / "run")
        (entry,) = json.loads((tmp_path / "run" / "error_analysis.json").read_text())["results"]
        return entry["types"][0], " ".join(entry["recommendations"])

    kind, advice = told()
    assert (kind["prior"], kind["prior_answer"]) == (pytest.approx(prior), answers(0)[0])
    assert "8 of 8 (100.0 %) questions are of types where the most usual answer" in advice
    # without the shards nothing can be scored
    data.rename(tmp_path / "elsewhere")
    kind, advice = told()
    assert (kind["prior"], kind["prior_answer"]) == (None, answers(0)[0]) and "most usual answer" not in advice
