"""Two runs on the same questions: McNemar's exact test, and the difference of their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import BadInput
from vlm.eval.files import check_same_ids
from vlm.eval.folder import EvaluationFolder
from vlm.eval.interval import Interval, bounds, resampled
from vlm.eval.score import read_predictions, score
from vlm.eval.tasks.base import Item, Mark, Outcome, Task
from vlm.eval.tasks.groups import grouped


@dataclass(frozen=True)
class Cells:
    """Questions by who answered rightly. Right is a full point: 0.9 in VQAv2 is not."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, two-sided: no run is right more often where they differ."""
        return mcnemar(self.only_a, self.only_b)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "p_value": self.p_value}


@dataclass(frozen=True)
class Comparison:
    """Run b against run a; `difference` is b's score less a's, with its paired interval."""

    scorer: str
    n: int
    score_a: float
    score_b: float
    difference: float
    interval: Interval | None
    cells: Cells
    by_type: dict[str, Cells]

    def to_json(self) -> dict[str, Any]:
        by_type = {name: {"n": cells.n, **cells.to_json()} for name, cells in self.by_type.items()}
        return {**asdict(self), "cells": self.cells.to_json(), "by_type": by_type}


def compare(a: Outcome, b: Outcome) -> Comparison:
    """Pair two outcomes of one scorer on the same questions, in the same order."""
    assert a.scorer == b.scorer
    images = [mark.item.image for mark in a.marks]
    with np.errstate(divide="ignore", invalid="ignore"):
        # the same draw for both: what an image makes hard for both of them cancels out
        differences = [b.statistic(weights) - a.statistic(weights) for weights in resampled(images)]
    pairs = list(zip(a.marks, b.marks, strict=True))
    return Comparison(
        scorer=a.scorer,
        n=len(pairs),
        score_a=a.score,
        score_b=b.score,
        difference=b.score - a.score,
        interval=bounds(differences, images),
        cells=_cells(pairs),
        by_type={name: _cells(group) for name, group in grouped(pairs, lambda pair: pair[0].type).items()},
    )


def compare_answers(
    task: Task, items: Sequence[Item], a: Mapping[str, str], b: Mapping[str, str], scorer: str
) -> Comparison:
    """Answers b against answers a."""
    return compare(score(task, items, a, scorer), score(task, items, b, scorer))


def compare_folders(a: Path, b: Path, truth: Path | None = None, scorer: str = "") -> Comparison:
    """Evaluation b against a; BadInput unless both are of one task, of the same questions, and of one scorer."""
    one, other = EvaluationFolder.of(a), EvaluationFolder.of(b)
    if one.task_name != other.task_name:
        raise BadInput(f"{a} is of task {one.task_name}, {b} of {other.task_name}; only runs of one task compare")
    if not scorer and one.scorer != other.scorer:
        raise BadInput(f"{a} was scored by {one.scorer}, {b} by {other.scorer}; choose with --scorer")
    check_same_ids(f"{b}, beside {a}", other.predictions, one.predictions)
    if not (one.scored and other.scored):
        raise BadInput(f"{a}, {b}: questions with no public answers; there is no score to compare")
    if one.digest != other.digest:
        raise BadInput(f"{a} answers the questions of {one.data}, {b} those of {other.data}; their digests differ")
    return compare_answers(one.task, one.items(truth), one.predictions, other.predictions, scorer or one.scorer)


def compare_files(task: Task, files: Sequence[Path], truth: Sequence[Item], scorer: str = "") -> Comparison:
    """Two files of answers to the questions `truth`, the second against the first."""
    one, other = (read_predictions(task, [path]) for path in files)
    check_same_ids(f"{files[1]}, beside {files[0]}", other, one)
    return compare(score(task, truth, one, scorer, files[:1]), score(task, truth, other, scorer, files[1:]))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test, from the two counts of questions where one run alone is right.

    If neither run is better, each such question falls to either like a fair coin.
    """
    n, least = only_a + only_b, min(only_a, only_b)
    # log of the binomial coefficients (n over 0 … least), each from the one before
    k = np.arange(1, least + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))]) - n * np.log(2)
    top = logs.max()
    return float(min(1.0, 2 * np.exp(top) * np.exp(logs - top).sum()))


def _cells(pairs: Sequence[tuple[Mark, Mark]]) -> Cells:
    right = [(a.right, b.right) for a, b in pairs]
    return Cells(*(right.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))))
