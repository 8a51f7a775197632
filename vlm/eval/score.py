"""Score prediction files, whoever made them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.info import DATASET_FILE
from shards.sample import Sample
from vlm.eval.files import by_id, check_same_ids, first_ids, identity, json_lines, text
from vlm.eval.looks import other_task
from vlm.eval.tasks.base import Item, Outcome, Task

T = TypeVar("T")

# fields that the answers of `vlm eval` have, whatever the task, and no task's own files have together
_OURS = frozenset({"question_id", "key", "question", "prediction", "answers"})
# what an answer is that nobody gave; tables that went through pandas say "nan"
_NOTHING = frozenset({"", "nan"})


def one_file(task: Task, truth: Path | None, predictions: Sequence[Path]) -> tuple[Path, Sequence[Path]]:
    """Truth and predictions, of which one may stand for both where a task's file can hold both."""
    if truth is not None and predictions:
        return truth, predictions
    if task.one_file and truth is not None:
        return truth, [truth]
    if task.one_file and predictions:
        return predictions[0], predictions
    if truth is None:
        raise BadInput("--truth: missing; name the official file with the answers, or a folder of shards")
    raise BadInput("vlm score: no predictions; name their files")


def read_truth(task: Task, truth: Path, questions: Path | None = None) -> list[Item]:
    """Items of the official files, or of a folder of shards; BadInput says which task the file looks like."""
    shards = os.path.isdir(truth) and not (task.folder and not (truth / DATASET_FILE).exists())
    if questions is not None and (shards or not task.questions):
        where = "a folder of shards" if shards else f"the file of --truth, for task {task.name},"
        raise BadInput(f"--questions {questions}: {where} holds the questions; leave it out")
    items = asked(open_shards(truth)) if shards else _read(task, truth, partial(task.read, truth, questions))
    # files of several tasks are alike but for the answers
    if not any(item.answers for item in items) and (other := other_task(task, truth)):
        raise BadInput(f"{truth}: no answers in it; the file looks like one of task {other}")
    if not task.judged:
        _check_answers(truth, [item for item in items if task.counts(item)])
    return items


def open_shards(folder: Path) -> ShardDataset:
    """The shards in a folder that holds questions; BadInput where there are none."""
    if not (folder / DATASET_FILE).exists():
        raise BadInput(f"--truth {folder}: holds no {DATASET_FILE}; name the official file, or a folder of shards")
    return ShardDataset.open(folder)


def items_of(dataset: ShardDataset) -> list[Item]:
    """The questions of shards; BadInput for one whose answers are not public."""
    items = asked(dataset)
    _check_answers(dataset.folder, items)
    return items


def _check_answers(where: Path, items: Sequence[Item]) -> None:
    if unknown := [item.question_id for item in items if not item.answers]:
        raise BadInput(
            f"{where}: {len(unknown)} of {len(items)} questions have no answer, first {first_ids(unknown)}; where they "
            "are not public, nothing is scored"
        )


def asked(samples: Iterable[Sample]) -> list[Item]:
    """The questions of samples, with or without answers."""
    return [Item.of(question, sample.key, sample.lang) for sample in samples for question in sample.questions]


def read_predictions(task: Task, paths: Sequence[Path]) -> dict[str, str]:
    """Answers of all files together, each in the official form or as `vlm eval` writes them.

    BadInput for a question that two of them answer, for a file all of whose answers are empty, or of another task.
    """
    found: dict[str, str] = {}
    for path in paths:
        more = _read(task, path, partial(_predictions, task, path))
        if twice := sorted(found.keys() & more.keys()):
            raise BadInput(f"{path}: {len(twice)} questions are answered in another file too, first {first_ids(twice)}")
        if all(answer.strip().lower() in _NOTHING for answer in more.values()):
            raise BadInput(f"{path}: all {len(more)} answers are empty; what wrote it has failed")
        found |= more
    return found


def score(
    task: Task, items: Sequence[Item], predictions: Mapping[str, str], scorer: str = "", files: Sequence[Path] = ()
) -> Outcome:
    """What a scorer of the task, the default one where none is named, says.

    BadInput, naming the `files` that the predictions are from, where the ids do not match.
    """
    name, judge = task.scorer(scorer)
    if task.align:
        predictions = task.align(items, predictions)
    counted = [item for item in items if task.counts(item)]
    if not counted:
        raise BadInput(f"task {task.name}: none of the {len(items)} questions counts")
    free = {item.question_id: "" for item in items if not task.counts(item)}
    where = ", ".join(map(str, files)) or "predictions"
    check = partial(check_same_ids, where, free | dict(predictions), {item.question_id: None for item in items})
    _read(task, files[0], check) if files else check()
    task.check(counted, name)
    return judge(counted, predictions)


def scorer_names(task: Task, scorers: str) -> list[str]:
    """Names with commas between them, the default one for an empty text; BadInput for one that is not, or twice."""
    names = [name.strip() for name in scorers.split(",")] if scorers.strip() else [task.scorer()[0]]
    for name in names:
        if not name or names.count(name) > 1:
            raise BadInput(f"scorer {scorers!r:.100}: names with commas between them are wanted, each once")
        task.scorer(name)
    return names


def check_scorable(task: Task, items: Sequence[Item], scorers: str) -> None:
    """BadInput for items that one of the scorers (as of `scorer_names`) cannot score together, whatever is answered."""
    names, counted = scorer_names(task, scorers), [item for item in items if task.counts(item)]
    for name in names if counted else ():
        task.check(counted, name)


def without_answer(
    task: Task, items: Sequence[Item], predictions: Mapping[str, str], lost: Iterable[str], scorers: Sequence[str]
) -> dict[str, str]:
    """The predictions with an answer that no scorer takes for right to the questions `lost`."""
    found, lost = dict(predictions), set(lost)
    if not lost:
        return found
    # POPE's official rule takes nothing for yes
    for nothing in ("", "no"):
        outcomes = [score(task, items, found, name) for name in scorers]
        points = {mark.item.question_id: mark.points for outcome in outcomes for mark in outcome.marks if mark.points}
        if not (right := points.keys() & lost):
            break
        found |= dict.fromkeys(right, nothing)
    return found


def _predictions(task: Task, path: Path) -> dict[str, str]:
    if path.suffix == ".jsonl":
        first = next(json_lines(path), None)
        if first and first[1].keys() >= _OURS:
            rows = by_id(path, json_lines(path), lambda placed: identity(placed, "question_id"))
            return {name: text(placed, "prediction") for name, placed in rows.items()}
    return task.read_predictions(path)


def _read(task: Task, path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except BadInput as error:
        if other := other_task(task, path):
            raise BadInput(f"{error}; the file looks like one of task {other}") from None
        raise
