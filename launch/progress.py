"""Progress of long work, on the error output: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from types import TracebackType


class Progress:
    """`at(done)` or `of(done, total)` may be called as often as work advances."""

    def __init__(self, unit: str, every_seconds: float = 5) -> None:
        self.unit, self.every, self._last = unit, every_seconds, time.monotonic()
        self._bar = _bar(unit) if sys.stderr.isatty() else None

    def at(self, done: int) -> None:
        """So many done, of an unknown number."""
        self.of(done, None)

    def of(self, done: int, total: int | None) -> None:
        """So many done of `total`."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            print(f"{done}{f'/{total}' if total else ''} {self.unit}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(unit: str):  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(unit, total=None)
    return bar
