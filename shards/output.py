"""A dataset folder that is being written."""

import errno
import fcntl
import importlib.metadata
import os
import platform
import re
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shards.errors import BadInput
from shards.files import UNFINISHED, check_output, claim_output, read_json
from shards.info import DATASET_FILE

_OURS = re.compile(
    r".+-\d{6}\.(tar|index\.json)|(rejected|duplicates)\.jsonl|quality\.(json|html)|"
    r"\.progress\.sqlite(-journal)?|\.translate-.+|\..+\.tmp|" + re.escape(UNFINISHED)
)
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_REFUSED_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)


def check_dataset(out: Path, name: str) -> None:
    """`check_output` for a dataset; another complete dataset there is not overwritten either (BadInput)."""
    try:
        check_output(out, DATASET_FILE)
        if not (out / DATASET_FILE).is_file():
            return
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    found = read_json(out / DATASET_FILE)
    if not isinstance(found, dict) or found.get("name") != name:
        holds = found.get("name") if isinstance(found, dict) else found
        raise BadInput(f"output folder {out} holds the dataset {holds!r:.200}; choose another --out")


def claim_dataset(out: Path, name: str) -> bool:
    """`claim_output` for a dataset, see `check_dataset`."""
    check_dataset(out, name)
    return claim_output(out, DATASET_FILE)


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keep other processes from writing in `out`, which is made if it is not there; BadInput when one does already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = _locked(out)
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    with lock:
        yield


def _locked(out: Path) -> IO[bytes]:
    """The file `.unfinished`, locked until it is closed."""
    while True:
        lock = open(out / UNFINISHED, "ab")  # noqa: SIM115  closed by `sole_writer`
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(out / UNFINISHED)):
                return lock
        except BlockingIOError as error:
            lock.close()
            raise BadInput(f"another process writes into {out}; choose another --out, or wait for its end") from error
        except FileNotFoundError:
            pass  # the process that held it has just finished, and took the file away
        lock.close()


@contextmanager
def room_to_write(out: Path) -> Iterator[None]:
    """BadInput where the system refuses to write in `out`, above all on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED or not Path(error.filename or out).is_relative_to(out):
            raise
        raise _unwritable(out, error.strerror) from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _REFUSED_SQLITE:
            raise
        raise _unwritable(out, str(error)) from error


def _unwritable(out: Path, why: str | None) -> BadInput:
    return BadInput(
        f"output {out}: cannot be written ({why}); make room there and give the command again, or choose another --out"
    )


def clear_output(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the files of earlier, unfinished work from a claimed folder, except the names in `keep`."""
    # The mark that the folder is ours goes last.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == UNFINISHED):
        if path.name not in keep and _OURS.fullmatch(path.name) and not path.is_dir():
            path.unlink()


def versions() -> dict[str, str]:
    """Versions that a dataset records."""
    try:
        own = importlib.metadata.version("ruvlm")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {"ruvlm": own, "python": platform.python_version()}
