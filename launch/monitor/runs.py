"""The runs at or below a folder, each with its state and what is wrong with it."""

import os
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from launch.monitor.incidents import Incident
from launch.monitor.judge import RUNNING, Seen, problems, stage
from launch.monitor.outputs import WHOLE, Checkpoint, Evaluation, checkpoints, evaluations, regular
from launch.monitor.training import EVENTS, Heartbeat, read_heartbeats, read_training
from launch.monitor.words import plain, utf8, whole
from shards.errors import BadInput
from shards.files import MANIFEST, UNFINISHED

# folders of a run that hold no other run
_OWN = {"checkpoints", "data", "eval", "heartbeat", "jobs", "logs", "merged", "models"}
_RECIPE_BYTES = 64 * 1024


@dataclass(frozen=True)
class RunStatus:
    """One run as its files say. Times in seconds, sizes in bytes; None is unknown. `run` is the path below DIR."""

    folder: Path
    run: str
    name: str
    stage: str
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    data_wait_seconds: float | None
    eta_seconds: float | None
    restarts: int
    heartbeats: tuple[Heartbeat, ...]
    checkpoints: tuple[Checkpoint, ...]
    evaluations: tuple[Evaluation, ...]
    heldout_loss: float | None
    incidents: tuple[Incident, ...]
    free_bytes: int | None
    problems: tuple[str, ...]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint whose every digest is right."""
        return next((c for c in self.checkpoints if c.state == WHOLE), None)

    def to_json(self, now: float) -> dict[str, Any]:
        """Plain fields, with the newest whole checkpoint and its age."""
        content: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folder"}
        for name in ("heartbeats", "checkpoints", "evaluations", "incidents"):
            content[name] = [asdict(item) for item in content[name]]
        found = self.checkpoint
        content["checkpoint"] = found and {
            "step": found.step,
            "age_seconds": round(max(0.0, now - found.time), 1),
            "bytes": found.bytes,
        }
        return {**content, "problems": list(self.problems)}


def collect(folder: Path, now: float | None = None) -> list[RunStatus]:
    """All runs at or below `folder`, those with problems first. Reads nothing outside `folder`, follows no link out.

    Raises BadInput when there is no such folder; a run whose files are garbage is listed with what can be said.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name a run or a folder of runs")
    root = folder.resolve()
    now = time.time() if now is None else now
    found = [_status(root, run, now) for run in _find(root)]
    return sorted(found, key=lambda status: (not status.problems, status.state != RUNNING, status.run))


def _find(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        if EVENTS in files and regular(root, Path(folder) / EVENTS):
            found.append(Path(folder))
            folders[:] = [name for name in folders if name not in _OWN]
    return found


def _status(root: Path, run: Path, now: float) -> RunStatus:
    training, recipe = read_training(root, run), _recipe(root, run)
    heartbeats = read_heartbeats(root, run, training)
    saved, answered = checkpoints(root, run), evaluations(root, run)
    checkpoint = recipe.get("checkpoint")
    every = whole(checkpoint, "every") if isinstance(checkpoint, dict) else None
    seen = Seen(training, heartbeats, saved, answered, _merged(run), every, _free(run), now)
    reached, state = stage(seen)
    left = training.steps - training.step if training.steps is not None and training.step is not None else None
    pace = training.step_seconds
    name = recipe.get("name")
    return RunStatus(
        folder=run,
        run=utf8(run.relative_to(root).as_posix()),
        name=plain(name if isinstance(name, str) and name.strip() else run.name, 80),
        stage=reached,
        state=state,
        step=training.step,
        steps=training.steps,
        loss=training.figure("loss"),
        grad_norm=training.figure("grad_norm"),
        learning_rate=training.figure("lr"),
        tokens_per_second=training.tokens_per_second,
        step_seconds=pace,
        data_wait_seconds=training.figure("data_wait_seconds"),
        eta_seconds=left * pace if left and pace and (reached, state) == ("train", RUNNING) else None,
        restarts=max(0, len(training.starts) - 1),
        heartbeats=heartbeats,
        checkpoints=saved,
        evaluations=answered,
        heldout_loss=training.heldout_loss,
        incidents=tuple(reversed(training.incidents)),
        free_bytes=seen.free_bytes,
        problems=problems(seen),
    )


def _recipe(root: Path, run: Path) -> dict[str, Any]:
    path = run / "recipe.yaml"
    try:
        if not regular(root, path) or path.stat().st_size > _RECIPE_BYTES:
            return {}
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _merged(run: Path) -> bool | None:
    if (run / "merged" / MANIFEST).exists():
        return True
    return False if (run / "merged" / UNFINISHED).exists() else None


def _free(run: Path) -> int | None:
    try:
        return shutil.disk_usage(run).free
    except OSError:
        return None
