"""Error analysis of one result: causes, question types, confusions, and what the questions alone give away."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from vlm.eval.tasks import normalise
from vlm.report.causes import CAUSES, Vocabulary, cause_of
from vlm.report.results import Prediction, Result

EXAMPLES = 5
CONFUSIONS = 5


@dataclass(frozen=True)
class WrongAnswer:
    """A wrong answer and its cause."""

    row: Prediction
    cause: str

    def to_json(self) -> dict[str, Any]:
        row = self.row
        return {
            "question_id": row.question_id,
            "key": row.key,
            "question": row.question,
            "prediction": row.prediction,
            "answers": list(row.gold[:EXAMPLES]),
            "type": row.type,
        }


@dataclass(frozen=True)
class Confusion:
    """`predicted` was answered `count` times where `gold` was right; both normalised."""

    gold: str
    predicted: str
    count: int


@dataclass(frozen=True)
class TypeAnalysis:
    """One question type. `prior` is the accuracy of always giving `prior_answer`, its most frequent answer."""

    type: str
    n: int
    score: float
    prior: float | None
    prior_answer: str | None
    confusions: tuple[Confusion, ...]


@dataclass(frozen=True)
class Analysis:
    """Error analysis of a result; without predictions only the scores by type are known."""

    result: Result
    wrong: tuple[WrongAnswer, ...]
    types: tuple[TypeAnalysis, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Wrong answers by cause, every cause named."""
        found = Counter(answer.cause for answer in self.wrong)
        return {cause: found[cause] for cause in CAUSES}

    @property
    def no_better_than_prior(self) -> int:
        """Questions of the types whose score does not exceed their prior, where answers of the type differ."""
        return sum(kind.n for kind in self.types if kind.prior is not None and kind.score <= kind.prior < 1)

    def to_json(self, recommendations: list[str]) -> dict[str, Any]:
        """The entry of error_analysis.json."""
        result = self.result
        return {
            "name": result.name,
            "task": result.task,
            "lang": result.lang,
            "protocol": result.protocol,
            "model": result.model,
            "n": result.n,
            "score": result.score,
            "untranslated": result.untranslated,
            "predictions": result.predictions is not None,
            "wrong": len(self.wrong),
            "causes": [self._cause(cause, number) for cause, number in self.counts.items()],
            "types": [_type_json(kind) for kind in self.types],
            "recommendations": recommendations,
        }

    def _cause(self, cause: str, number: int) -> dict[str, Any]:
        of_cause = [answer for answer in self.wrong if answer.cause == cause]
        return {
            "cause": cause,
            "count": number,
            "share": round(number / len(self.wrong), 6) if self.wrong else 0.0,
            "examples": [answer.to_json() for answer in of_cause[:EXAMPLES]],
        }


def _type_json(kind: TypeAnalysis) -> dict[str, Any]:
    return {
        "type": kind.type,
        "n": kind.n,
        "score": kind.score,
        "prior": kind.prior,
        "prior_answer": kind.prior_answer,
        "confusions": [{"gold": c.gold, "predicted": c.predicted, "count": c.count} for c in kind.confusions],
    }


def analyse(result: Result) -> Analysis:
    """The analysis of a result; types stand in the order of their number of questions."""
    rows = result.predictions or ()
    vocabulary = Vocabulary.of(rows)
    wrong = tuple(WrongAnswer(row, cause_of(row, vocabulary)) for row in rows if not row.correct)
    by_type: dict[str, list[Prediction]] = {}
    for row in rows:
        by_type.setdefault(row.type, []).append(row)
    if result.predictions is None:
        types = [TypeAnalysis(name, item.n, item.score, None, None, ()) for name, item in result.by_type.items()]
    else:
        types = [_analyse_type(name, of_type, result) for name, of_type in by_type.items()]
    return Analysis(result, wrong, tuple(sorted(types, key=lambda kind: (-kind.n, kind.type))))


def _analyse_type(name: str, rows: list[Prediction], result: Result) -> TypeAnalysis:
    stated = result.by_type.get(name)
    share = sum(row.correct for row in rows) / len(rows)
    # an answer counts once a question, however often it stands among the accepted ones
    answers = Counter(answer for row in rows for answer in {normalise(gold): None for gold in row.gold})
    prior_answer, hits = answers.most_common(1)[0]
    return TypeAnalysis(
        type=name,
        n=len(rows),
        score=round(stated.score if stated else share, 6),
        prior=round(hits / len(rows), 6),
        prior_answer=prior_answer,
        confusions=_confusions(rows),
    )


def _confusions(rows: list[Prediction]) -> tuple[Confusion, ...]:
    pairs = Counter((_usual(row.gold), normalise(row.prediction)) for row in rows if not row.correct)
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Confusion(gold, predicted, number) for (gold, predicted), number in ranked[:CONFUSIONS])


def _usual(gold: tuple[str, ...]) -> str:
    """The answer most people gave."""
    return Counter(map(normalise, gold)).most_common(1)[0][0]
