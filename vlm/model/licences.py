"""A model's licence and notices, and which of a folder's files are its own."""

from fnmatch import fnmatch
from pathlib import Path

from shards.errors import BadInput
from shards.files import write_atomic

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
_MOST = 2**20


def own_files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of one of these names, which may be patterns; BadInput for a link that leads out of the folder."""
    found = [path for path in sorted(folder.iterdir()) if any(fnmatch(path.name, name) for name in names)]
    for path in found:
        if not _inside(path.resolve(), folder.resolve()):
            raise BadInput(f"{path}: a link to outside of the model's folder; replace it by a copy")
    return [path for path in found if path.is_file()]


def _inside(target: Path, folder: Path) -> bool:
    """In the folder; of a snapshot in the hub's cache all files are links to its blobs."""
    blobs = folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else folder
    return target.is_relative_to(folder) or target.is_relative_to(blobs)


def copy_licences(part: Path, role: str, out: Path) -> None:
    """Those of a part of a model into `out`, as LICENSE.vision.txt: whoever passes the model on passes them on."""
    for path in own_files(part, LICENCES):
        if path.stat().st_size > _MOST:
            raise BadInput(f"{path}: {path.stat().st_size} bytes are no licence")
        write_atomic(out / f"{path.stem}.{role}{path.suffix}", path.read_bytes())
