"""Ends a training that hangs, with the stack of every rank in the log.

A rank that waits for another in a collective waits for ever: the others' stacks show where they stand, and who has
written none is the one that hangs outside Python's reach (stopped, or its machine is gone).
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

_RECENT = 50
# how long the others get to write their stacks before the first one ends the job
_GRACE_SHARE, _GRACE_SECONDS = 0.25, 10.0
# as of a process that was killed: whatever hung, a fresh start from the last checkpoint may help
EXIT_CODE = 128 + signal.SIGABRT


class Watchdog:
    """A thread that ends the process when `beat` was not called for `steps` median steps, at least `seconds`."""

    def __init__(self, run: Path, rank: int, ranks: int, steps: float, seconds: float) -> None:
        self.folder, self.rank, self.ranks = run / "logs", rank, ranks
        self.steps, self.least = steps, seconds
        self._durations: deque[float] = deque(maxlen=_RECENT)
        self._last, self._began = time.monotonic(), time.time()
        self._ended = threading.Event()
        self.hung: Callable[[list[int]], None] = lambda silent: None

    def __enter__(self) -> "Watchdog":
        if self.steps > 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f"stack-rank-{self.rank:03d}.txt"):
                path.unlink(missing_ok=True)
            self.beat()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def beat(self) -> None:
        """Something was done: a micro-batch, a save."""
        self._last = time.monotonic()

    def step(self, seconds: float) -> None:
        """A step took so long."""
        self._durations.append(seconds)
        self.beat()

    @property
    def limit(self) -> float:
        """Seconds of silence that are too long now."""
        typical = median(self._durations) if self._durations else 0.0
        return max(self.least, self.steps * typical)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.limit / 10)):
            silence = time.monotonic() - self._last
            if silence > self.limit:
                self._end(silence)

    def _end(self, silence: float) -> None:
        print(
            f"rank {self.rank}: nothing done for {silence:.0f} s, the job hangs; stacks:", file=sys.stderr, flush=True
        )
        faulthandler.dump_traceback(sys.stderr)
        with open(self._stack(self.rank), "w", encoding="utf-8") as handle:
            faulthandler.dump_traceback(handle)
        time.sleep(min(_GRACE_SECONDS, self.limit * _GRACE_SHARE))
        silent = [rank for rank in range(self.ranks) if not self._wrote(rank)]
        names = ", ".join(map(str, silent))
        reason = f"no stack from rank {names}: stopped, or its machine is gone" if silent else "all ranks wrote stacks"
        print(f"rank {self.rank}: {reason}; see {self.folder}; ending", file=sys.stderr, flush=True)
        self.hung(silent)
        os._exit(EXIT_CODE)

    def _stack(self, rank: int) -> Path:
        return self.folder / f"stack-rank-{rank:03d}.txt"

    def _wrote(self, rank: int) -> bool:
        try:
            return self._stack(rank).stat().st_mtime >= self._began
        except OSError:
            return False
