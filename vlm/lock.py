"""One training a run directory: rank 0 holds a kernel lock on RUN/train.lock, which ends with its process."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import BadInput

# an earlier incarnation that is being killed needs a moment to end
PATIENCE = 20.0


@contextmanager
def only_training(run: Path, seconds: float = PATIENCE) -> Iterator[None]:
    """Hold `run` alone; BadInput when another training still holds it after `seconds`."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = open(run / "train.lock", "a", encoding="ascii")  # noqa: SIM115 - what fails below is another's fault
    except OSError as error:
        raise BadInput(f"run: {run}: cannot be written ({error.strerror}); choose another run=") from None
    with handle:
        deadline = time.monotonic() + seconds
        while not _taken(handle.fileno()):
            if time.monotonic() > deadline:
                raise BadInput(f"{run}: another training is at work there; end it or choose another run=")
            time.sleep(0.1)
        yield


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
