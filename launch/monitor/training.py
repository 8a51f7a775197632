"""A training as its events and heartbeats tell it."""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from launch.monitor.incidents import BAD, Incident, incident
from launch.monitor.outputs import read_object, regular
from launch.monitor.words import number, plain, whole
from vlm.events import iterate_events

EVENTS = "events.jsonl"
# about 200,000 steps; of a longer run the starts before them are not counted
LAST_BYTES = 64 << 20
_KINDS = ("start", "step", "checkpoint", "stop", "end")
_RECENT = 50


@dataclass(frozen=True)
class Heartbeat:
    """The newest sign of life of a rank: steps done, and when (seconds since the epoch)."""

    rank: int
    host: str
    step: int
    time: float


@dataclass
class Training:
    """What the events say: `starts` are the steps trainings began at, `recent` the last step events, `last` the kind
    of the newest event and `time` its time. `incidents` are the last events in words; `troubles` those since the newest
    start that are bad: of each kind how many, and the last."""

    starts: list[int] = field(default_factory=list)
    began: float | None = None
    steps: int | None = None
    ranks: int | None = None
    step: int | None = None
    last: str = ""
    time: float | None = None
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    incidents: deque[Incident] = field(default_factory=lambda: deque(maxlen=_RECENT))
    troubles: dict[str, tuple[int, Incident]] = field(default_factory=dict)
    heldout_loss: float | None = None

    @property
    def step_seconds(self) -> float | None:
        """Median time between two steps, saving included."""
        times = [t for event in self.recent if (t := number(event, "time")) is not None]
        gaps = [b - a for a, b in pairwise(times) if b > a]
        return median(gaps) if gaps else self.figure("seconds")

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the last steps."""
        pairs = [(number(e, "tokens"), number(e, "seconds")) for e in self.recent]
        tokens = sum(t for t, s in pairs if t and s)
        seconds = sum(s for t, s in pairs if t and s)
        return tokens / seconds if seconds > 0 else None

    def figure(self, name: str) -> float | None:
        """A figure of the newest step; None where it is missing or not finite."""
        return number(self.recent[-1], name) if self.recent else None

    def add(self, event: dict[str, Any]) -> None:
        """Take the next event."""
        kind = event.get("event")
        if told := incident(event):
            self.incidents.append(told)
            if told.kind in BAD:
                self.troubles[told.kind] = (self.troubles.get(told.kind, (0, told))[0] + 1, told)
            elif told.kind == "heldout":
                self.heldout_loss = number(event, "loss")
        if kind not in _KINDS:
            return
        self.last, self.time = kind, number(event, "time")
        if kind == "start":
            self.troubles.clear()
            self.starts.append(whole(event, "step") or 0)
            self.began, self.step = self.time, self.starts[-1]
            self.steps, self.ranks = whole(event, "steps"), whole(event, "ranks")
        elif kind == "step":
            self.recent.append(event)
            self.step = whole(event, "step")


def read_training(root: Path, run: Path) -> Training:
    """Training of a run folder in `root`; empty where its events cannot be read."""
    training = Training()
    if regular(root, run / EVENTS):
        for event in iterate_events(run, LAST_BYTES):
            training.add(event)
    return training


def read_heartbeats(root: Path, run: Path, training: Training) -> tuple[Heartbeat, ...]:
    """Of the ranks of the newest start, in order; a rank that has not beaten since counts as alive at the start."""
    found: dict[int, Heartbeat] = {}
    for path in sorted((run / "heartbeat").glob("rank-*.json")):
        content = read_object(root, path, 4096)
        rank, beaten = whole(content, "rank"), number(content, "time")
        if rank is not None and beaten is not None:
            host = plain(str(content.get("host", "")), 80)
            found[rank] = Heartbeat(rank, host, whole(content, "step") or 0, max(beaten, training.began or 0))
    if training.ranks is None or training.began is None or training.ranks > 65536:
        return tuple(found[rank] for rank in sorted(found))
    absent = (Heartbeat(rank, "", training.starts[-1], training.began) for rank in range(training.ranks))
    return tuple(found.get(beat.rank, beat) for beat in absent)
