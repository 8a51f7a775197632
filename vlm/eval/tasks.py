"""Tasks: how a question becomes a prompt and how an answer is scored. One small class a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shards.errors import BadInput


@dataclass(frozen=True)
class Task:
    """`correct(prediction, answers)` is the share of a point, 0 to 1, that an answer earns."""

    name: str
    scorer: str
    correct: Callable[[str, Sequence[str]], float]


def normalise(answer: str) -> str:
    """Spaces around, one final period and letter case do not count."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction equals one of the accepted answers after `normalise`."""
    return float(normalise(prediction) in {normalise(a) for a in answers})


TASKS = {t.name: t for t in (Task("exact", "exact-match", exact_match),)}


def find_task(name: str) -> Task:
    """The task of that name, or BadInput."""
    if name not in TASKS:
        raise BadInput(f"eval.task: unknown task {name!r}; choose {', '.join(TASKS)}")
    return TASKS[name]
