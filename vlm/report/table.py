"""The table of results: one row an evaluation, with its interval, and the drop that translation leaves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlm.report.results import Prediction, Result
from vlm.report.wording import language

RESAMPLES = 1000
_SEED = 0
_ROUNDING = 5e-4


@dataclass(frozen=True)
class ResultRow:
    """One evaluation. `score` is 0 to 1, `interval` its 95 % bootstrap interval over images, where it can be had;
    `label` says in words which model answered which questions."""

    task: str
    lang: str
    protocol: str
    model: str
    n: int
    score: float
    scorer: str
    name: str
    interval: tuple[float, float] | None
    label: str

    @property
    def rank(self) -> int:
        """Place in the table: 0 English base, 1 adapter, 2 adapter translated back, 3 base on the new language, 4 any.

        Answers translated back are scored against the English dataset, so there `lang` may be English.
        """
        base = self.model == "base"
        if self.protocol == "backtranslate":
            return 4 if base else 2
        if _english(self.lang):
            return 0 if base else 4
        return 3 if base else 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Drop:
    """What is lost between the English base and the adapter's answers translated back to English."""

    english: ResultRow
    back: ResultRow

    @property
    def points(self) -> float:
        """Percentage points, above zero where the adapter scores lower."""
        return (self.english.score - self.back.score) * 100

    @property
    def percent(self) -> float | None:
        """The same relative to the base's score."""
        return self.points / self.english.score if self.english.score else None

    @property
    def sentence(self) -> str:
        """The drop in words."""
        share = "" if self.percent is None else f" ({abs(self.percent):.1f} %)"
        way = "below" if self.points >= 0 else "above"
        return (
            f"Answers translated back ({self.back.name}) score {abs(self.points):.2f} points{share} {way} the English "
            f"base ({self.english.name})."
        )


def result_rows(results: Sequence[Result]) -> list[ResultRow]:
    """The rows of all results of a run, in their order."""
    return [_row(result, _new_language(result.task, results)) for result in results]


def _row(result: Result, new: str) -> ResultRow:
    return ResultRow(
        task=result.task,
        lang=result.lang,
        protocol=result.protocol,
        model=result.model,
        n=result.n,
        score=result.score,
        scorer=result.scorer,
        name=result.name,
        interval=interval(result.predictions) if agrees(result) else None,
        label=_label(result, new),
    )


def _label(result: Result, new: str) -> str:
    if result.protocol == "backtranslate":
        return f"{result.model} on {new if _english(result.lang) else language(result.lang)}, translated back"
    who = "English base" if result.model == "base" and _english(result.lang) else result.model
    return f"{who} on {language(result.lang)}"


def _english(lang: str) -> bool:
    return lang.split("-")[0].lower() == "en"


def _new_language(task: str, results: Sequence[Result]) -> str:
    """The one language besides English that a task was evaluated in."""
    found = {result.lang for result in results if result.task == task and not _english(result.lang)}
    return language(found.pop()) if len(found) == 1 else "the new language"


def agrees(result: Result) -> bool:
    """The score is the share of correct predictions, so an interval of that share is one of the score."""
    rows = result.predictions
    if not rows or len(rows) != result.n:
        return False
    return abs(sum(row.correct for row in rows) / len(rows) - result.score) <= _ROUNDING


def interval(predictions: tuple[Prediction, ...] | None) -> tuple[float, float] | None:
    """95 % percentile bootstrap of the share of correct answers.

    Images are drawn, not questions: questions about one image fail together.
    """
    images: dict[str, list[int]] = {}
    for row in predictions or ():
        tally = images.setdefault(row.key, [0, 0])
        tally[0] += 1
        tally[1] += row.correct
    if not images:
        return None
    counts = np.array(list(images.values()))  # (images, 2): questions, correct
    random = np.random.default_rng(_SEED)
    shares = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        questions, correct = counts[random.integers(len(counts), size=len(counts))].sum(axis=0)
        shares[i] = correct / questions
    low, high = np.quantile(shares, (0.025, 0.975))
    return round(float(low), 6), round(float(high), 6)


def missing_rows(results: Sequence[Result], rows: Sequence[ResultRow]) -> list[str]:
    """What no result of a task stands for, of the table's four rows."""
    missing = []
    for task in sorted({row.task for row in rows}):
        new = _new_language(task, results)
        adapter = f"adapter on {new}"
        labels = ("English base on English", adapter, f"{adapter}, translated back", f"base on {new}")
        ranks = {row.rank for row in rows if row.task == task}
        missing += [f"{label} (task {task})" for rank, label in enumerate(labels) if rank not in ranks]
    return missing


def drops(rows: Sequence[ResultRow]) -> list[Drop]:
    """The drop of every result translated back whose English base is certain: alone in its task, or alone in its n."""
    found = []
    for back in sorted((row for row in rows if row.rank == 2), key=lambda row: (row.task, row.name)):
        english = [row for row in rows if row.rank == 0 and row.task == back.task]
        twins = [row for row in english if row.n == back.n] or english
        if len(twins) == 1:
            found.append(Drop(twins[0], back))
    return found
