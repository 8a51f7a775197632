"""The trainings of a run as their events tell them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.events import read_events
from vlm.report.wording import clean

ADAPTER = "adapter"
_LAST = 10
_OVERFIT = 1.02


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step; what its event did not state, or not as a finite number, is None."""

    step: int
    loss: float | None
    lr: float | None
    tokens: float | None
    seconds: float | None
    wait: float | None
    speed: float | None


@dataclass(frozen=True)
class Training:
    """One training: steps in order, each once; `repeated` of them had to be run again after a restart."""

    name: str
    steps: tuple[StepRecord, ...]
    planned: int | None
    ranks: int | None
    attention: str
    samples: int | None
    evaluations: tuple[tuple[int, float], ...]
    checkpoints: tuple[int, ...]
    restarts: int
    repeated: int
    finished: bool
    began: float | None

    @property
    def final_loss(self) -> float | None:
        """Mean loss of the last ten steps."""
        last = [step.loss for step in self.steps[-_LAST:] if step.loss is not None]
        return sum(last) / len(last) if last else None

    @property
    def first_loss(self) -> float | None:
        """Loss of the first step that states one."""
        return next((step.loss for step in self.steps if step.loss is not None), None)

    @property
    def seconds(self) -> float:
        """Seconds in optimizer steps, waiting for data included."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def speed(self) -> float | None:
        """Tokens per second over all steps."""
        tokens = sum(step.tokens or 0.0 for step in self.steps if step.seconds)
        return tokens / self.seconds if self.seconds and tokens else None

    @property
    def wait_share(self) -> float | None:
        """Share of the time that steps waited for data."""
        return sum(step.wait or 0.0 for step in self.steps) / self.seconds if self.seconds else None

    @property
    def best_evaluation(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest evaluation loss."""
        return min(self.evaluations, key=lambda item: item[1], default=None)

    @property
    def overfits(self) -> bool:
        """The last evaluation loss lies more than 2 % above the lowest."""
        best = self.best_evaluation
        return best is not None and self.evaluations[-1][1] > best[1] * _OVERFIT


def read_trainings(run: Path) -> list[Training]:
    """Every training in the run with at least one step, in the order in which they began."""
    folders = {path.parent for pattern in ("*", "base/*") for path in run.glob(f"{pattern}/events.jsonl")}
    named = [(clean(folder.relative_to(run).as_posix(), 60), folder) for folder in sorted(folders)]
    trainings = [_training(name, read_events(folder)) for name, folder in [(ADAPTER, run), *named]]
    found = [training for training in trainings if training.steps]
    return sorted(found, key=lambda training: (training.began or 0.0, training.name))


def _training(name: str, events: list[dict[str, Any]]) -> Training:
    starts = [i for i, event in enumerate(events) if event.get("event") == "start"]
    start = events[starts[-1]] if starts else {}
    ran = [step for step in map(_step, _of(events, "step")) if step is not None]
    steps = {step.step: step for step in ran}  # of a step that was run again, the last
    evaluations = {_whole(e, "step"): _number(e, "loss") for e in _of(events, "eval")}
    saved = {_whole(e, "step") for e in _of(events, "checkpoint")}
    return Training(
        name=name,
        steps=tuple(steps[i] for i in sorted(steps)),
        planned=_whole(start, "steps"),
        ranks=_whole(start, "ranks"),
        attention=clean(str(start.get("attention", "")), 40),
        samples=_whole(start, "samples"),
        evaluations=tuple(sorted((s, loss) for s, loss in evaluations.items() if s is not None and loss is not None)),
        checkpoints=tuple(sorted(step for step in saved if step is not None)),
        restarts=max(0, len(starts) - 1),
        repeated=len(ran) - len(steps),
        finished=any(event.get("event") == "end" for event in events[starts[-1] if starts else 0 :]),
        began=next((t for e in events if (t := _number(e, "time")) is not None), None),
    )


def _of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("event") == name]


def _step(event: dict[str, Any]) -> StepRecord | None:
    step = _whole(event, "step")
    if step is None:
        return None
    return StepRecord(
        step=step,
        loss=_number(event, "loss"),
        lr=_number(event, "lr"),
        tokens=_number(event, "tokens"),
        seconds=_number(event, "seconds"),
        wait=_number(event, "data_wait_seconds"),
        speed=_number(event, "tokens_per_second"),
    )


def _number(event: dict[str, Any], name: str) -> float | None:
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def _whole(event: dict[str, Any], name: str) -> int | None:
    value = event.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
