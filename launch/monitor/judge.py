"""How a run stands, and what is wrong with it beside its alerts, in words."""

from dataclasses import dataclass

from launch.monitor.outputs import Evaluation
from launch.monitor.training import Training
from launch.monitor.words import duration, plain

RUNNING, SILENT, STOPPED, QUEUED, FINISHED = "running", "silent", "stopped", "queued", "finished"
_QUIET_EVALUATION = 600.0
# alerts tell of these
_ALERTS = ("nonfinite", "spike", "straggler")


@dataclass(frozen=True)
class Seen:
    """What the files of a run said at time `now`. `merged`: None where no merge has begun, else whether it is whole;
    `queued`: Slurm says that the training waits for its turn."""

    training: Training
    evaluations: tuple[Evaluation, ...]
    merged: bool | None
    queued: bool
    now: float

    @property
    def unfinished(self) -> list[Evaluation]:
        """Evaluations that have begun and have no result."""
        return [e for e in self.evaluations if e.score is None]


def stage(seen: Seen) -> tuple[str, str]:
    """The furthest stage that has begun (train, eval, merge) and its state; whether a training is silent, its
    alert tells."""
    if seen.training.last == "stop":
        return "train", STOPPED
    if seen.training.last != "end":
        return "train", QUEUED if seen.queued else RUNNING
    if seen.merged is not None:
        return "merge", FINISHED if seen.merged else RUNNING
    if seen.unfinished:
        return "eval", SILENT if all(_stale(e, seen.now) for e in seen.unfinished) else RUNNING
    return ("eval" if seen.evaluations else "train"), FINISHED


def remarks(seen: Seen) -> list[str]:
    """What is wrong and no alert, one line each, the gravest first."""
    found = []
    if seen.training.last != "end":
        found += [str(each) for each in seen.training.current_troubles() if each.kind not in _ALERTS]
    if seen.training.last == "stop":
        found.append(f"stopped on request at step {seen.training.step}; the same command goes on from there")
    for e in (e for e in seen.unfinished if _stale(e, seen.now)):
        age = duration(seen.now - e.time)
        found.append(f"evaluation {plain(e.name)}: {e.parts_done} of {e.parts} parts done, nothing written for {age}")
    return found


def _stale(evaluation: Evaluation, now: float) -> bool:
    return now - evaluation.time > _QUIET_EVALUATION
