"""What a run tells the world: append-only events, one heartbeat file a rank, progress on the screen."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from shards.files import write_atomic


class Events:
    """Appends to RUN/events.jsonl; each line is one whole write, so readers never see two lines mixed."""

    def __init__(self, run: Path, enabled: bool = True) -> None:
        self.path, self.enabled = run / "events.jsonl", enabled

    def write(self, event: str, **fields: Any) -> None:
        """One event with its time (seconds since the epoch)."""
        if self.enabled:
            line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False) + "\n"
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)


def read_events(run: Path) -> list[dict[str, Any]]:
    """All whole events of a run; a torn last line (a killed writer) is left out."""
    path = run / "events.jsonl"
    if not path.exists():
        return []
    events = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [e for e in events if isinstance(e, dict)]


class Heartbeat:
    """RUN/heartbeat/rank-000.json, renewed at most once a second."""

    def __init__(self, run: Path, rank: int) -> None:
        self.path = run / "heartbeat" / f"rank-{rank:03d}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rank, self._last = rank, 0.0

    def beat(self, step: int) -> None:
        """Say that this rank has finished `step` steps."""
        now = time.time()
        if now - self._last >= 1:
            self._last = now
            state = {"rank": self.rank, "pid": os.getpid(), "host": socket.gethostname(), "step": step, "time": now}
            write_atomic(self.path, json.dumps(state))
