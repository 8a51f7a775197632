"""How a run stands and what is wrong with it, in words."""

from dataclasses import dataclass

from launch.monitor.incidents import BAD, LASTING
from launch.monitor.outputs import DAMAGED, WHOLE, Checkpoint, Evaluation
from launch.monitor.training import Heartbeat, Training
from launch.monitor.words import duration, plain, size

RUNNING, SILENT, STOPPED, FINISHED = "running", "silent", "stopped", "finished"
_QUIET_SECONDS, _QUIET_STEPS = 30.0, 5
# before the first step is timed: models load and kernels compile
_QUIET_START = 300.0
_QUIET_EVALUATION = 600.0
# a spike or a slow rank is news for so many steps
_NEWS_STEPS = 50


@dataclass(frozen=True)
class Seen:
    """What the files of a run said at time `now`. `every`: steps between checkpoints; `merged`: None where no merge
    has begun, else whether it is whole."""

    training: Training
    heartbeats: tuple[Heartbeat, ...]
    checkpoints: tuple[Checkpoint, ...]
    evaluations: tuple[Evaluation, ...]
    merged: bool | None
    every: int | None
    free_bytes: int | None
    now: float

    @property
    def unfinished(self) -> list[Evaluation]:
        """Evaluations that have begun and have no result."""
        return [e for e in self.evaluations if e.score is None]

    @property
    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose every digest is right."""
        return next((c for c in self.checkpoints if c.state == WHOLE), None)


def stage(seen: Seen) -> tuple[str, str]:
    """The furthest stage that has begun (train, eval, merge) and its state.

    A training is silent when a rank's heartbeat (without heartbeats, the newest event) is older than 30 s and than
    five median steps.
    """
    if seen.training.last == "stop":
        return "train", STOPPED
    if seen.training.last != "end":
        return "train", SILENT if _silence(seen) else RUNNING
    if seen.merged is not None:
        return "merge", FINISHED if seen.merged else RUNNING
    if seen.unfinished:
        return "eval", SILENT if all(_stale(e, seen.now) for e in seen.unfinished) else RUNNING
    return ("eval" if seen.evaluations else "train"), FINISHED


def problems(seen: Seen) -> tuple[str, ...]:
    """One line each, the gravest first."""
    found = []
    if seen.training.last not in ("stop", "end"):
        found += _silence(seen)
    found += [f"checkpoint of step {c.step} is damaged: {c.problem}" for c in seen.checkpoints if c.state == DAMAGED]
    found += _troubles(seen.training)
    found += _stuck(seen.training)
    told = "nonfinite" in seen.training.troubles
    if not told and seen.training.last == "step" and seen.training.recent and seen.training.figure("loss") is None:
        found.append(f"the loss of step {seen.training.step} is not a finite number")
    found += _overdue(seen) + _full(seen)
    if seen.training.last == "stop":
        found.append(f"stopped on request at step {seen.training.step}; the same command goes on from there")
    for e in (e for e in seen.unfinished if _stale(e, seen.now)):
        age = duration(seen.now - e.time)
        found.append(f"evaluation {plain(e.name)}: {e.parts_done} of {e.parts} parts done, nothing written for {age}")
    return tuple(found)


def _silence(seen: Seen) -> list[str]:
    pace = seen.training.step_seconds
    limit = max(_QUIET_SECONDS, _QUIET_STEPS * pace) if pace else _QUIET_START
    if not seen.heartbeats:
        age = seen.now - (seen.training.time or 0)
        return [f"no event for {duration(age)} and no heartbeat; it has not said that it ended"] if age > limit else []
    quiet = [beat for beat in seen.heartbeats if seen.now - beat.time > limit]
    return [_quiet(quiet, seen.now, len(seen.heartbeats), limit)] if quiet else []


def _quiet(beats: list[Heartbeat], now: float, ranks: int, limit: float) -> str:
    first = min(beats, key=lambda beat: beat.time)
    who = f"rank {first.rank}{f' on {first.host}' if first.host else ''}"
    others = f" ({len(beats)} of {ranks} ranks)" if len(beats) > 1 else ""
    age = duration(now - first.time)
    return f"{who} silent for {age}{others}, last at step {first.step}; more than {duration(limit)} is too long"


def _stale(evaluation: Evaluation, now: float) -> bool:
    return now - evaluation.time > _QUIET_EVALUATION


def _troubles(training: Training) -> list[str]:
    if training.last == "end":
        return []
    lines = []
    for kind in (kind for kind in BAD if kind in training.troubles):
        count, last = training.troubles[kind]
        if kind in LASTING or (training.step or 0) - (last.step or 0) <= _NEWS_STEPS:
            at = f"step {last.step}: " if last.step is not None else ""
            more = f" ({count} of this kind since the start)" if count > 1 else ""
            lines.append(f"{at}{last.text}{more}")
    return lines


def _stuck(training: Training) -> list[str]:
    starts = training.starts[-3:]
    if len(starts) < 3 or len(set(starts)) > 1 or training.last == "end":
        return []
    return [f"the last 3 starts were all at step {starts[0]}: no checkpoint in between"]


def _overdue(seen: Seen) -> list[str]:
    if not seen.every or seen.training.step is None or seen.training.last == "end":
        return []
    saved = seen.newest.step if seen.newest else 0
    late = seen.training.step - saved
    return [f"no whole checkpoint for {late} steps, one is due every {seen.every}"] if late > 2 * seen.every else []


def _full(seen: Seen) -> list[str]:
    if seen.free_bytes is None or seen.newest is None or seen.free_bytes >= 2 * seen.newest.bytes:
        return []
    return [f"{size(seen.free_bytes)} free on the disk, a checkpoint takes {size(seen.newest.bytes)}"]
