"""Remembers for a day which checkpoints were found whole, so that a command that ends does not hash gigabytes again.

Only their digests' names are kept, as empty files below the user's own cache: nothing of a run is read from there.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

Signature = tuple[tuple[str, int, int], ...]
_KEPT_SECONDS = 2 * 86400


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ruvlm" / "verified"


def _mark(path: Path, files: Signature, day: int) -> Path:
    return _folder() / hashlib.sha256(repr((str(path), files, day)).encode("utf-8", "surrogateescape")).hexdigest()


def found_whole(path: Path, files: Signature, day: int) -> bool:
    """Whether just these files (names, sizes, times in ns) were found whole on that day."""
    try:
        return _mark(path, files, day).exists()
    except OSError:
        return False


def remember_whole(path: Path, files: Signature, day: int) -> None:
    """Note that they were; forget what is older than a day. A cache that cannot be written costs time alone."""
    with suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        _mark(path, files, day).touch()
        for old in _folder().iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                old.unlink(missing_ok=True)


def forget(path: Path, files: Signature, day: int) -> None:
    """They were found damaged after all."""
    with suppress(OSError):
        _mark(path, files, day).unlink(missing_ok=True)
