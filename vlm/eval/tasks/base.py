"""What a task is: official files to items, a prompt, scorers. docs/evaluation.md shows how to add one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shards.errors import BadInput, nearest
from shards.sample import Question
from vlm.eval.tasks.groups import grouped

_SAME = 1e-9
# name of a type for questions that have none
UNTYPED = "all"


@dataclass(frozen=True)
class Item:
    """A question with its truth.

    `image` names its image: questions of one image are not independent, and intervals are drawn over images. `answers`
    are as the set gives them (ten in VQAv2, a letter where there are `options`); `details` what its scorer needs
    besides, named as in the official files.
    """

    question_id: str
    image: str
    question: str
    answers: tuple[str, ...]
    type: str | None = None
    options: tuple[str, ...] = ()
    lang: str = "en"
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, question: Question, image: str, lang: str) -> "Item":
        """The item of a question in shards; `image` is its sample's key, where `details` name no other."""
        q = question
        details = q.details or {}
        image = str(details.get("image") or image)
        return cls(q.question_id, image, q.question, q.answers, q.type, q.options, lang, details)


@dataclass(frozen=True)
class Mark:
    """An answer and what it earned: `parsed` is what was compared, `points` are 0 to 1."""

    item: Item
    prediction: str
    parsed: str
    points: float

    @property
    def right(self) -> bool:
        """A full point: 0.9 in VQAv2 is not."""
        return self.points >= 1

    @property
    def type(self) -> str:
        """The question's type."""
        return self.item.type or UNTYPED


@dataclass(frozen=True)
class Outcome:
    """What a scorer says of n marks.

    `score` is 0 to 1 (the ratio of LLaVA-Bench may be above); `metrics` are named and scaled as the official script
    has them. `statistic` gives the score again where mark i counts `weights[i]` times (float64, shape (n,)): resampling
    needs no second scoring.
    """

    scorer: str
    score: float
    metrics: dict[str, Any]
    marks: Sequence[Mark]
    statistic: Callable[[np.ndarray], float]

    @property
    def n(self) -> int:
        return len(self.marks)

    @property
    def is_mean(self) -> bool:
        """Whether the score is the mean of the points, as POPE's F1 is not."""
        return abs(self.score - sum(mark.points for mark in self.marks) / self.n) < _SAME

    @property
    def by_type(self) -> dict[str, dict[str, float]]:
        """Type of question → `{"n", "score"}`, the score being the mean of the points."""
        return breakdown(self.marks, lambda mark: mark.type)


# items and the answers by question id; the ids are equal sets by then
Scorer = Callable[[Sequence[Item], Mapping[str, str]], Outcome]


def no_choices(item: Item) -> Sequence[str]:
    """Of a question with a free answer."""
    return ()


def every_item(item: Item) -> bool:
    """Of a task all of whose questions count."""
    return True


class Check(Protocol):
    """Raises BadInput for items that a scorer, the default one for an empty name, cannot score."""

    def __call__(self, items: Sequence[Item], scorer: str = "", /) -> None: ...


def no_check(items: Sequence[Item], scorer: str = "") -> None:
    """Of a task that can score any of its questions without the others."""


@dataclass(frozen=True)
class Task:
    """A benchmark.

    `scorers` by name, the default first. `read` takes the official truth and, with `questions`, the file of the
    questions where that is apart and given; `read_predictions` a file of answers in the official form, as question id →
    answer. `prompt` is the name of a response-format prompt in shards/prompts.tsv, empty for none. `choices` are the
    texts that an answer can be, for constrained decoding. `submit` writes answers in the official form to a file. With
    `one_file` truth and predictions may stand in one file, which then need be named only once, with `folder` the truth
    may be a folder of files. `align` renames predictions whose ids are not the items'. Items that do not `count` are
    not scored, and may be left unanswered. `check` raises BadInput for a set of items that a scorer cannot score; it is
    asked before anything is answered. With `judged` a judge scores the answers, see docs/judge.md. Without
    `pictures` questions need no image. A file that holds all fields of one of `signs` is certainly one of this task, or
    of another of equal signs: the same set in another language.
    """

    name: str
    scorers: Mapping[str, Scorer]
    read: Callable[[Path, Path | None], list[Item]]
    read_predictions: Callable[[Path], dict[str, str]]
    prompt: str = ""
    max_new_tokens: int = 16
    choices: Callable[[Item], Sequence[str]] = no_choices
    submit: Callable[[Sequence[Item], Mapping[str, str], Path], None] | None = None
    one_file: bool = False
    folder: bool = False
    align: Callable[[Sequence[Item], Mapping[str, str]], Mapping[str, str]] | None = None
    counts: Callable[[Item], bool] = every_item
    check: Check = no_check
    questions: bool = False
    judged: bool = False
    pictures: bool = True
    signs: tuple[frozenset[str], ...] = ()

    def scorer(self, name: str = "") -> tuple[str, Scorer]:
        """Name and scorer, the default where `name` is empty; BadInput for one that the task does not have."""
        found = name or next(iter(self.scorers))
        if found not in self.scorers:
            raise BadInput(f"scorer {name!r:.100}: {self.name} has none of that name{nearest(name, self.scorers)}")
        return found, self.scorers[found]


def mean_outcome(scorer: str, marks: Sequence[Mark], metrics: dict[str, Any]) -> Outcome:
    """An outcome whose score is the mean of the points."""
    points = np.array([mark.points for mark in marks])

    def statistic(weights: np.ndarray) -> float:
        return float(weights @ points / weights.sum())

    return Outcome(scorer, statistic(np.ones(len(marks))), metrics, marks, statistic)


def breakdown(marks: Sequence[Mark], group: Callable[[Mark], str]) -> dict[str, dict[str, float]]:
    """Group → `{"n", "score"}`, the groups in order of their names."""
    groups = grouped(marks, group).items()
    return {name: {"n": len(found), "score": sum(mark.points for mark in found) / len(found)} for name, found in groups}
