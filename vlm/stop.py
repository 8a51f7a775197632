"""What ends the work early: a stop asked for by signal, agreed on by all ranks, obeyed after a checkpoint; a fault.

Slurm sends SIGUSR2 before the time limit (`--signal`; some sites SIGUSR1) and SIGTERM at preemption, not to every rank
at the same moment, so ranks agree by a reduction at each micro-batch. Imports nothing heavy: a signal that comes while
libraries still load must find its handler.
"""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)

_asked = threading.Event()


class Requeue(Exception):
    """The work stopped on request with its state saved; the same command goes on from there."""


class Fault(Exception):
    """The work ended itself for a reason that a person must see to; the message is one clear line."""


@contextmanager
def room_on_disk(where: Path) -> Iterator[None]:
    """Fault where what is written at `where` meets a full disk or quota; whoever writes leaves no half a file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Fault(f"{where}: {error.strerror}; make room and start the same command again") from error


def listen() -> None:
    """Take note of stop signals from now on; no-op outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _ask)


def _ask(number: int, frame: FrameType | None) -> None:
    _asked.set()


def asked() -> bool:
    """Whether a stop signal has reached this process."""
    return _asked.is_set()


def obey() -> Requeue:
    """The exception to raise now that the work is saved; the request counts as met."""
    _asked.clear()
    return Requeue()
