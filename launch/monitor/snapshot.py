"""One collection for all who ask at the same time."""

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from launch.monitor.runs import RunStatus, collect

_MAX_AGE_SECONDS = 2.0
_MINUTE = 60


class Snapshot:
    """The runs below a folder, collected at most every two seconds, by one thread at a time: digests of large
    checkpoints take a while, and many readers must not multiply the work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._runs: list[RunStatus] = []
        self._at = float("-inf")

    def runs(self) -> list[RunStatus]:
        """Those with problems first."""
        with self._lock:
            if time.monotonic() - self._at > _MAX_AGE_SECONDS:
                self._runs = collect(self.folder)
                self._at = time.monotonic()
            return self._runs


def digest(runs: Sequence[RunStatus]) -> str:
    """Changes when a page of these runs would: with their files, and every minute for the ages."""
    minute = time.time() // _MINUTE * _MINUTE
    content = json.dumps([minute, [run.to_json(minute) for run in runs]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
