"""What `vlm score` refuses: exit 2 and one line, whatever the task."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.errors import BadInput
from tests.eval_files import Told, lines
from vlm.eval import files
from vlm.eval.tasks import TASKS, find_task
from vlm.eval.tasks.base import Item

Refused = Callable[..., str]


@pytest.fixture
def refused(vlm: Callable[..., Told]) -> Refused:
    """What a command says in the one line that it refuses its input with."""

    def call(*arguments: object) -> str:
        code, out, told = vlm(*arguments)
        assert (code, out, told.count("\n")) == (2, "", 1)
        return told

    return call


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    """Truth and answers of one's own."""
    truth = lines(tmp_path / "truth.jsonl", {"question_id": 1, "answers": ["yes"]}, {"question_id": 2, "answer": "no"})
    answers = [{"question_id": 1, "prediction": "Yes."}, {"question_id": 2, "prediction": "yes"}]
    return truth, lines(tmp_path / "answers.jsonl", *answers)


@pytest.mark.parametrize("task", ["exact", "text"])
def test_an_answer_is_a_text_or_several(task: str, own: tuple[Path, Path], vlm: Callable[..., Told]) -> None:
    truth, answers = own
    lines(truth, {"question_id": 1, "answers": "yes", "type": "a"}, {"question_id": 2, "answer": "no", "image": 7})
    found = json.loads(vlm("score", task, answers, "--truth", truth, "--json")[1])
    assert found["score"] == 0.5 and found["interval"]["images"] == 2


@pytest.mark.parametrize("task", ["exact", "text"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": 5}, "field 'answers': a text or a list of texts is wanted, not 5"),
        ({"answers": []}, "field 'answers': a text or a list"),
        ({"answers": ["a", 1]}, "field 'answers': a text or a list"),
        ({"count": 5}, "field 'answers': a text or a list of texts is wanted, but it is missing"),
        ({"answer": 5}, "field 'answer': a text or a list of texts is wanted, not 5"),
        ({"answers": "a", "type": 3}, "field 'type': a text is wanted, not 3"),
        ({"answers": "a", "image": [1]}, "field 'image': an id is wanted"),
        ({"answers": "a", "question": 1}, "field 'question': a text is wanted"),
    ],
)
def test_a_truth_of_wrong_fields(
    task: str, fields: dict[str, Any], message: str, own: tuple[Path, Path], refused: Refused
) -> None:
    truth, answers = own
    lines(truth, {"question_id": 1, "answer": "a", "type": "b"}, {"question_id": 2} | fields)
    assert f"truth.jsonl:2: {message}" in refused("score", task, answers, "--truth", truth)


def _unknown(truth: Path, questions: Path | None) -> list[Item]:
    return [Item("1", "1", "?", ("yes",)), Item("2", "2", "?", ()), Item("3", "3", "?", ())]


def test_questions_without_answers(own: tuple[Path, Path], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(find_task("exact"), name="odd", read=_unknown)
    monkeypatch.setitem(TASKS, "odd", odd)
    assert "2 of 3 questions have no answer, first 2, 3;" in refused("score", "odd", own[1], "--truth", own[0])
    # those that do not count need none
    monkeypatch.setitem(TASKS, "odd", replace(odd, counts=lambda item: item.question_id < "3"))
    assert "1 of 2 questions have no answer, first 2;" in refused("score", "odd", own[1], "--truth", own[0])


def test_a_set_that_a_task_cannot_score(
    own: tuple[Path, Path], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(items: Sequence[Item], scorer: str = "") -> None:
        raise BadInput(f"{len(items)} of them by {scorer}")

    monkeypatch.setitem(TASKS, "odd", replace(find_task("exact"), name="odd", check=check))
    assert refused("score", "odd", own[1], "--truth", own[0]) == "vlm: 2 of them by exact-match\n"


@pytest.mark.parametrize("task", ["exact", "text", "easy-vqa", "gqa", "llava-bench", "mmbench", "vizwiz"])
def test_questions_where_they_are_not_apart(task: str, own: tuple[Path, Path], english: Path, refused: Refused) -> None:
    truth, answers = own
    told = refused("score", task, answers, "--truth", truth, "--questions", truth)
    assert f"--questions {truth}: the file of --truth, for task {task}, holds the questions; leave it out" in told


def test_questions_beside_shards(own: tuple[Path, Path], english: Path, refused: Refused) -> None:
    told = refused("score", "vqav2", own[1], "--truth", english, "--questions", own[0])
    assert "a folder of shards holds the questions" in told


@pytest.mark.parametrize("answer", ["", " \n", "nan"])
@pytest.mark.parametrize("ours", [True, False])
def test_answers_that_are_all_empty(answer: str, ours: bool, own: tuple[Path, Path], refused: Refused) -> None:
    truth, answers = own
    more = {"key": "", "question": "", "answers": []} if ours else {}
    rows = [{"question_id": i, "prediction": answer, **more} for i in (1, 2)]
    assert "all 2 answers are empty" in refused("score", "exact", lines(answers, *rows), "--truth", truth)


def test_answers_to_other_questions_are_named(own: tuple[Path, Path], refused: Refused) -> None:
    truth, answers = own
    rows = [{"question_id": i, "prediction": "yes", "key": "", "question": "", "answers": []} for i in (1, 3)]
    wrong = "1 of 2 ids have no prediction, first 2; 1 of 2 ids are no questions of this set, first 3"
    assert refused("score", "exact", lines(answers, *rows), "--truth", truth) == f"vlm: {answers}: {wrong}\n"
    # what `vlm eval` wrote says its task
    ours = lines(answers.with_name("predictions.jsonl"), *rows)
    ours.with_name("result.json").write_text('{"task": "gqa"}')
    told = refused("score", "exact", ours, "--truth", truth)
    assert told == f"vlm: {ours}: {wrong}; the file looks like one of task gqa\n"
    ours.with_name("result.json").write_text("[")
    assert refused("score", "exact", ours, "--truth", truth) == f"vlm: {ours}: {wrong}\n"


def test_one_empty_answer_is_an_answer(own: tuple[Path, Path], vlm: Callable[..., Told]) -> None:
    truth, answers = own
    lines(answers, {"question_id": 1, "prediction": ""}, {"question_id": 2, "prediction": "no"})
    assert json.loads(vlm("score", "exact", answers, "--truth", truth, "--json")[1])["score"] == 0.5


@pytest.mark.parametrize("task", ["exact", "vqav2", "gqa", "pope", "mmbench", "easy-vqa"])
def test_what_is_no_plain_file(task: str, own: tuple[Path, Path], refused: Refused) -> None:
    assert "not a plain file" in refused("score", task, own[1], "--truth", "/dev/null")
    assert "not a plain file" in refused("score", "exact", "/dev/null", "--truth", own[0])


def test_a_file_is_never_read_beyond_the_cap(
    own: tuple[Path, Path], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MOST_BYTES", own[0].stat().st_size - 1)
    assert "truth.jsonl: larger than" in refused("score", "exact", own[1], "--truth", own[0])
    assert files.head(own[0], 3) == b'{"q'


@pytest.mark.parametrize("option", ["--truth", "--questions", "--scorer"])
def test_an_option_given_twice(option: str, own: tuple[Path, Path], refused: Refused) -> None:
    told = refused("score", "exact", own[1], option, own[0], option, own[0])
    assert told == f"vlm: {option}: given more than once\n"


def test_files_of_answers_may_be_several(own: tuple[Path, Path], vlm: Callable[..., Told], tmp_path: Path) -> None:
    one, other = (
        lines(tmp_path / f"{i}.jsonl", {"question_id": i, "prediction": "yes"}) for i in (1, 2)
    )  # fmt: skip
    code, out, _ = vlm("score", "exact", "--truth", own[0], "--predictions", one, "--predictions", other, "--json")
    assert code == 0 and json.loads(out)["score"] == 0.5


@pytest.mark.parametrize("scorer", ["", " ", "f1,", "f1,f1", ","])
def test_scorers_that_are_no_names(scorer: str, own: tuple[Path, Path], refused: Refused) -> None:
    told = refused("score", "text", own[1], "--truth", own[0], "--scorer", scorer)
    assert ("each once" if "," in scorer else "--scorer: empty; text has f1, exact") in told


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "index,question,A,B,answer\n1,?,a,b,A\n", "one column, 'index,question,A,B,answer'; a tab"),
        ("x.tsv", "index\tA\tA\n1\ta\tb\n", "two columns are named 'A'"),
        ("x.json", "{}", "a .tsv or .xlsx file is wanted, or for answers JSON lines in a .jsonl file"),
        ("x.jsonl", '{"index": 1, "prediction": "A"}', "JSON lines are answers alone; name the official table"),
        ("x.tsv", None, "cannot be read (No such file or directory)"),
        ("x.json", None, "cannot be read (No such file or directory)"),
        ("x.xlsx", None, "cannot be read (No such file or directory)"),
    ],
)
def test_tables(name: str, content: str | None, message: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert f"{path}: {message}" in refused("score", "mmbench", path)


def test_a_json_list_for_json_lines(own: tuple[Path, Path], refused: Refused) -> None:
    own[1].write_text(json.dumps([{"question_id": 1, "prediction": "yes"}]))
    told = refused("score", "exact", own[1], "--truth", own[0])
    assert "answers.jsonl:1: an object on each line is wanted, not a JSON list" in told
