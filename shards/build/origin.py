"""The files that a build reads: whether they are still the same, and names that do not tell where they lie."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from shards.readers.base import ReaderOptions

# A folder of images may hold millions: its first entries must do.
_ENTRIES = 1000


def sources(options: ReaderOptions) -> list[Path]:
    """The paths given."""
    return [path for path in (options.input, options.annotations, options.images) if path is not None]


def stamps(paths: Iterable[Path], out: Path) -> list[Any]:
    """What tells cheaply whether files or folders have changed: paths, sizes and times, of many files at least.

    `out` may lie among them, and is passed over.
    """
    return [[str(path.absolute()), *_stamp(path, out.absolute())] for path in paths]


def portable(text: str, options: ReaderOptions) -> str:
    """`text` with the last name alone of the paths given, so that it does not depend on where the build ran."""
    for path in sources(options):
        for spelt in (str(path.resolve()), str(path)):
            if "/" in spelt and path.name:
                text = text.replace(spelt, path.name)
    return text


def _stamp(path: Path, out: Path) -> list[Any]:
    below = path.absolute().rglob("*") if path.is_dir() else ()
    others = (file for file in below if file != out and out not in file.parents)
    return [[file.name, *_size_and_time(file)] for file in (path, *sorted(islice(others, _ENTRIES)))]


def _size_and_time(file: Path) -> list[int]:
    try:
        stat = file.stat()
    except OSError:  # a dangling link, say: the reader will complain if it matters
        return []
    return [stat.st_size, stat.st_mtime_ns]
