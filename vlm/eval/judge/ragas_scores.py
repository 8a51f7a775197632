"""RAGAS metrics by the `ragas` library, asked through the same judge: cached, retried, refusals counted.

Its telemetry is off, and its own clients are not used.
"""

import asyncio
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.errors import BadInput, ServerFault
from vlm.eval.interval import interval
from vlm.eval.judge.config import JudgeConfig
from vlm.eval.judge.held_out import HeldOut, require
from vlm.eval.judge.unread import UNDEFINED, Fault, Unread
from vlm.eval.judge.verdicts import At, Judge, at_once, make_server
from vlm.eval.tasks.base import Item, Mark, mean_outcome


@dataclass(frozen=True)
class Metric:
    """A class of ragas, the arguments that it takes, and whether it needs embeddings.

    `empty` is the score of an empty answer, where that has one: ragas would give up, and who says nothing would gain.
    """

    maker: str
    takes: tuple[str, ...]
    embeds: bool = False
    empty: float | None = None


_FIELDS = {"user_input": "question", "response": "answer", "retrieved_contexts": "contexts", "reference": "reference"}

METRICS = {
    "faithfulness": Metric("Faithfulness", ("user_input", "response", "retrieved_contexts")),
    "answer_relevancy": Metric("AnswerRelevancy", ("user_input", "response"), True, 0.0),
    "answer_correctness": Metric("AnswerCorrectness", ("user_input", "response", "reference"), True, 0.0),
    "context_precision": Metric("ContextPrecision", ("user_input", "reference", "retrieved_contexts")),
    "context_recall": Metric("ContextRecall", ("user_input", "retrieved_contexts", "reference")),
}


@dataclass(frozen=True)
class Score:
    """Of a row by a metric; where `value` is None, `why` says what was wrong."""

    value: float | None
    why: str = ""


Scores = dict[str, list[Score]]
# by metric, what makes it anew for a row: it counts how often it asked the same
Makers = dict[str, Callable[[], Any]]


def choose(config: JudgeConfig, rows: Sequence[HeldOut]) -> list[str]:
    """The metrics named, or all that rows and servers allow; BadInput where one lacks what it needs."""
    named = [name.strip() for name in config.metrics.split(",") if name.strip()]
    if unknown := next((name for name in named if name not in METRICS), ""):
        raise BadInput(f"metrics: {unknown!r:.50} is unknown; there are {', '.join(METRICS)}")
    chosen = named or [name for name, metric in METRICS.items() if _possible(metric, config, rows)]
    if not chosen:
        raise BadInput("metrics: the rows allow none; context metrics need contexts, the others an embedding model")
    for name in chosen:
        if METRICS[name].embeds and not config.embeddings:
            raise BadInput(f"embeddings: {name} needs an embedding model; name it, or leave {name} out of `metrics`")
        for field in METRICS[name].takes:
            if field != "response":
                require(rows, _FIELDS[field], f"{name} needs it")
    return chosen


def score_rows(judge: Judge, rows: Sequence[HeldOut], make: Makers, at: At | None = None) -> Scores:
    """Metric → scores in the order of the rows."""
    places = [(name, number) for name in make for number in range(len(rows))]
    done: Counter[str] = Counter()

    def one(place: tuple[str, int]) -> Score:
        name, number = place
        found = _score(METRICS[name], make[name], rows[number])
        done["all"] += 1
        if at:
            at(done["all"], len(places))
        return found

    found = at_once(places, one, judge.config.concurrency)
    return {name: [found[name, number] for number in range(len(rows))] for name in make}


def lines(rows: Sequence[HeldOut], scores: Scores) -> Iterator[dict[str, Any]]:
    """The scores of each row, and why it has none."""
    for number, row in enumerate(rows):
        found = {name: of_metric[number] for name, of_metric in scores.items()}
        why = {name: score.why for name, score in found.items() if score.why}
        yield {"question_id": row.question_id, **{name: score.value for name, score in found.items()}, "why": why}


def summary(rows: Sequence[HeldOut], scores: Scores) -> dict[str, Any]:
    """By metric: mean of the scores that are there, how many those are, how many are not and why."""
    return {name: _summary(name, rows, found) for name, found in scores.items()}


def _summary(name: str, rows: Sequence[HeldOut], scores: Sequence[Score]) -> dict[str, Any]:
    marks = [
        Mark(Item(row.question_id, row.image, row.question, row.references), row.answer, "", score.value)
        for row, score in zip(rows, scores, strict=True)
        if score.value is not None
    ]
    found = mean_outcome(name, marks, {}) if marks else None
    around = interval(found) if found else None
    return {
        "mean": found.score if found else None,
        "n": len(marks),
        "nan": len(scores) - len(marks),
        "why": dict(sorted(Counter(score.why for score in scores if score.value is None).items())),
        "interval": asdict(around) if around else None,
    }


def _possible(metric: Metric, config: JudgeConfig, rows: Sequence[HeldOut]) -> bool:
    fields = [_FIELDS[field] for field in metric.takes if field != "response"]
    return bool(config.embeddings or not metric.embeds) and all(
        any(getattr(row, field) for row in rows) for field in fields
    )


def _score(metric: Metric, make: Callable[[], Any], row: HeldOut) -> Score:
    if "response" in metric.takes and not row.answer.strip():
        return Score(metric.empty, "" if metric.empty is not None else UNDEFINED)
    given: dict[str, Any] = {field: getattr(row, _FIELDS[field]) for field in metric.takes}
    if "retrieved_contexts" in given:
        given["retrieved_contexts"] = list(row.contexts)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(asyncio.run(make().ascore(**given)).value)
    except (BadInput, ServerFault, Fault):
        raise
    except Unread as error:
        return Score(None, str(error))
    except Exception as error:
        # of what ragas makes of a strange reply; it is kept, and would end every later run
        return Score(None, f"ragas: {type(error).__name__}")
    return Score(value) if math.isfinite(value) else Score(None, UNDEFINED)


def makers(judge: Judge, names: Sequence[str]) -> Makers:
    """Of the metrics that `choose` gave; BadInput where ragas cannot be imported."""
    # before the import, which reads it; ragas tells its makers who uses it otherwise
    os.environ["RAGAS_DO_NOT_TRACK"] = "true"
    try:
        from ragas.metrics import collections  # type: ignore[import-not-found]

        from vlm.eval.judge.ragas_bridge import Asker, Embedder
    except ImportError as error:
        raise BadInput(
            f"vlm judge ragas: ragas cannot be imported ({error}); docs/judge.md says how to install it"
        ) from None
    shared = {}
    if any(METRICS[name].embeds for name in names):
        shared["embeddings"] = Embedder(judge, make_server(judge.config, embedder=True))

    def maker(metric: Metric) -> Callable[[], Any]:
        made = getattr(collections, metric.maker)
        return lambda: made(llm=Asker(judge), **(shared if metric.embeds else {}))

    return {name: maker(METRICS[name]) for name in names}
