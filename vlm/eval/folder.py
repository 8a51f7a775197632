"""RUN/eval/NAME read again: the one reader of what an evaluation left."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from shards.dataset import ShardDataset
from shards.errors import BadInput, plain
from shards.files import check_plain_file, read_json, sha256_file
from vlm.eval.files import Placed, by_id, identity, json_lines, optional_text, text
from vlm.eval.parts import Row
from vlm.eval.score import asked, open_shards
from vlm.eval.tasks import find_task
from vlm.eval.tasks.base import Item, Task

RESULT, ANSWERS, FLIPS = "result.json", "predictions.jsonl", "flips.json"
# reference answers there and back, where answers were translated back
REFERENCES = "references.jsonl"

T = TypeVar("T")


def folder_of(run: Path | str, name: str) -> Path:
    """RUN/eval/NAME."""
    return Path(run) / "eval" / name


@dataclass(frozen=True)
class ScoredRow:
    """A line of predictions.jsonl.

    `answer` is what was scored; `correct` is None where the scorer did not look at it; `untranslated` is an answer, as
    it was given, that could not be translated back.
    """

    answer: Row
    correct: bool | None
    untranslated: str | None


@dataclass(frozen=True)
class EvaluationFolder:
    """An evaluation that is done.

    `of` reads and checks result.json alone; `result` is all that it holds, the other fields what every reader needs of
    it, checked. `data` and `digest` are of the questions' shards, `scored` is false where right answers are not public.
    predictions.jsonl is read, once, where `rows` or `predictions` are asked for, which raise BadInput unless it is the
    file that the result was made from; `whole` says so without raising. Only `dataset` and `items` open the shards.
    """

    folder: Path
    result: Mapping[str, Any]
    task_name: str
    scorer: str
    scored: bool
    protocol: str
    lang: str
    prompt: str
    generation: Mapping[str, Any]
    data: str
    digest: str

    @classmethod
    def of(cls, folder: Path) -> "EvaluationFolder":
        """BadInput unless the folder holds the result of an evaluation."""
        path = folder / RESULT
        if not path.exists():
            raise BadInput(f"{folder}: holds no {RESULT}; give RUN/eval/NAME of an evaluation that is done")
        found = read_json(path)
        if not isinstance(found, dict):
            raise BadInput(f"{path}: not the result of an evaluation; run `vlm eval` again")
        dataset = _field(path, found, "dataset", dict)
        return cls(
            folder=folder,
            result=found,
            task_name=_field(path, found, "task", str),
            scorer=_field(path, found, "scorer", str),
            scored=found.get("score") is not None,
            protocol=_field(path, found, "protocol", str, "direct"),
            lang=_field(path, found, "lang", str, "en"),
            prompt=_field(path, found, "prompt", str, ""),
            generation=_field(path, found, "generation", dict, {}),
            data=_field(path, dataset, "path", str),
            digest=_field(path, dataset, "digest", str),
        )

    @property
    def task(self) -> Task:
        """BadInput for one that there is not."""
        return find_task(self.task_name)

    @cached_property
    def whole(self) -> bool:
        """Whether predictions.jsonl is there, and the one that the result was made from."""
        path = self.folder / ANSWERS
        return path.is_file() and sha256_file(path) == self.result.get("predictions")

    @cached_property
    def rows(self) -> list[ScoredRow]:
        """The answers, in the order of the questions; BadInput unless they are `whole`, and as many as were scored."""
        path = self.folder / ANSWERS
        check_plain_file(path)
        if not self.whole:
            raise BadInput(f"{path}: not the answers that {RESULT} was made from; run `vlm eval` again")
        placed = by_id(path, json_lines(path), lambda row: identity(row, "question_id"))
        found = [_row(name, each) for name, each in placed.items()]
        scored = [row for row in found if row.correct is not None] if self.scored else found
        if self.result.get("n", len(scored)) != len(scored):
            raise BadInput(f"{self.folder / RESULT}: 'n' is not the {len(scored)} of {ANSWERS}; run `vlm eval` again")
        return found

    @property
    def predictions(self) -> dict[str, str]:
        """Answers as they were scored, by question id."""
        return {row.answer.question_id: row.answer.prediction for row in self.rows}

    def dataset(self, truth: Path | None = None) -> ShardDataset:
        """The questions' shards, where they were then or in `truth`; BadInput where they are gone, or have changed."""
        folder = truth or Path(self.data)
        # Path.is_dir raises for a name that is too long
        if not os.path.isdir(folder):
            at = plain(str(folder))
            raise BadInput(f"{self.folder}: its questions are no longer in {at}; say where with --truth")
        dataset = open_shards(folder)
        if dataset.digest != self.digest:
            raise BadInput(f"{folder}: other questions than those of {self.folder}; name theirs with --truth")
        return dataset

    def items(self, truth: Path | None = None) -> list[Item]:
        """The questions that were answered, from `dataset`."""
        answered = self.predictions
        return [item for item in asked(self.dataset(truth)) if item.question_id in answered]


def submission(folder: Path, out: Path, truth: Path | None = None) -> int:
    """Write an evaluation's answers as the set's own server takes them; how many there are."""
    found = EvaluationFolder.of(folder)
    if found.task.submit is None:
        raise BadInput(f"{folder}: task {found.task_name} has no official submission file; {ANSWERS} holds all")
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and not out.is_file():
        raise BadInput(f"--out {out}: is no plain file; choose another name")
    items = found.items(truth)
    found.task.submit(items, found.predictions, out)
    return len(items)


def _field(path: Path, fields: Mapping[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    value = fields.get(name, default)
    if not isinstance(value, kind):
        raise BadInput(f"{path}: {name!r} should be of type {kind.__name__}; run `vlm eval` again")
    return value


def _row(name: str, placed: Placed) -> ScoredRow:
    place, fields = placed
    answers, kind, correct = fields.get("answers"), fields.get("type"), fields.get("correct")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise BadInput(f"{place}: 'answers' should be a list of texts; run `vlm eval` again")
    for field, value in (("type", kind), ("untranslated", fields.get("untranslated"))):
        if not isinstance(value, str | None):
            raise BadInput(f"{place}: {field!r} should be a text; run `vlm eval` again")
    for field in ("correct", "cut", "refused"):
        if not isinstance(fields.get(field, False), bool):
            raise BadInput(f"{place}: {field!r} should be true or false; run `vlm eval` again")
    if correct is not None and not answers:
        raise BadInput(f"{place}: scored, though 'answers' is empty; run `vlm eval` again")
    key, question, said = (text(placed, field) for field in ("key", "question", "prediction"))
    row = Row(
        name, key, question, said, answers, kind,
        image=optional_text(placed, "image", ""),
        cut=fields.get("cut", False),
        refused=fields.get("refused", False),
    )  # fmt: skip
    return ScoredRow(row, correct, fields.get("untranslated"))
