"""Files written whole, folders sealed by a manifest of digests."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from shards.errors import BadInput

MANIFEST = "MANIFEST.json"
UNFINISHED = ".unfinished"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def local_folder(folder: Path | str) -> Path:
    """`folder` as a path; BadInput for a URL: `pipe:` runs a command in webdataset, `http:` asks another machine."""
    if _URL.match(str(folder)):
        raise BadInput(f"{str(folder)!r:.200}: a URL; give the path of a dataset folder on this machine")
    return Path(folder)


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` last through a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_name(path: Path) -> Path:
    """A fresh name beside `path`: several processes may write the same target at once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to; it takes the place of `path` at the end of the block, whole, or not at all."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) so that a reader sees the old file or the new one, never a part."""
    payload = data.encode("utf-8") if isinstance(data, str) else data
    with atomic_file(Path(path)) as handle:
        handle.write(payload)


def write_json_lines(path: Path | str, objects: Iterable[Any]) -> None:
    """Write one JSON object a line, as they come."""
    with atomic_file(Path(path)) as handle:
        for obj in objects:
            handle.write(json.dumps(obj, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")


def json_text(obj: Any) -> str:
    """`obj` as indented JSON in insertion order; NaN and infinity are refused (ValueError)."""
    return json.dumps(obj, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def write_json(path: Path | str, obj: Any) -> None:
    """Write `json_text` of `obj`."""
    write_atomic(path, json_text(obj))


def refuse_constant(name: str) -> Any:
    """For `json`: NaN and infinities are no JSON."""
    raise ValueError(f"{name} is not JSON")


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse strict JSON; BadInput, starting with `where`, on anything else."""
    try:
        return json.loads(data, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not valid JSON ({error})") from error


def check_plain_file(path: Path | str) -> None:
    """BadInput unless `path` is a plain file: a pipe gives its content only once, a device may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path}: not a plain file; save what it gives to one")


def read_json(path: Path | str, max_bytes: int = 64 * 1024 * 1024) -> Any:
    """Read a JSON file of at most `max_bytes`; BadInput, naming the file, when missing, garbage or larger."""
    check_plain_file(path)
    try:
        with open(path, "rb") as handle:
            # a read of max_bytes alone would take that much memory for the smallest file
            data = handle.read(min(os.fstat(handle.fileno()).st_size, max_bytes) + 1)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > max_bytes:
        raise BadInput(f"{path}: larger than {max_bytes} bytes")
    return parse_json(data, str(path))


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """(relative POSIX name, path) of all that is not a plain folder, in sorted order; links are not followed."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [Path(root) / name for name in names + links]
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        if name not in (MANIFEST, UNFINISHED):
            yield name, path


def write_manifest(folder: Path | str, extra: dict[str, Any] | None = None) -> None:
    """Seal `folder`: write MANIFEST.json, last, with size and digest of every file below it.

    BadInput when the folder holds a link or a special file: their content could change unseen.
    """
    folder = Path(folder)
    files: dict[str, dict[str, Any]] = {}
    for name, path in _files_below(folder):
        if path.is_symlink() or not path.is_file():
            raise BadInput(f"{path}: only plain files can be sealed; replace it by a copy")
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        # others wrote them: what is sealed must be on the disk before the seal
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
    write_json(folder / MANIFEST, {"files": files, **(extra or {})})


def verify_manifest(folder: Path | str) -> list[str]:
    """Compare `folder` with its MANIFEST.json; one line a problem, none when all is as sealed.

    Names in a manifest are compared with what lies in the folder, never opened, so none leads out of it.
    """
    folder = Path(folder)
    try:
        manifest = read_json(folder / MANIFEST)
    except BadInput as error:
        return [str(error)]
    sealed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(sealed, dict):
        return [f'{folder / MANIFEST}: has no "files"']
    found = dict(_files_below(folder))
    problems = [f"{name}: missing" for name in sealed if name not in found]
    for name, path in found.items():
        problem = _difference(path, sealed[name]) if name in sealed else "not in the manifest"
        if problem:
            problems.append(f"{name}: {problem}")
    return problems


def _difference(path: Path, sealed: Any) -> str | None:
    if path.is_symlink() or not path.is_file():
        return "not a plain file"
    if not isinstance(sealed, dict):
        return "its entry in the manifest is garbage"
    size = path.stat().st_size
    if size != sealed.get("bytes"):
        return f"{size} bytes instead of {sealed.get('bytes')}"
    if sha256_file(path) != sealed.get("sha256"):
        return "digest differs"
    return None


def check_output(folder: Path | str, marker: str) -> None:
    """BadInput for a folder with other people's files; output that is whole (`marker`) or `.unfinished` is ours."""
    folder = Path(folder)
    if os.path.lexists(folder):
        if not folder.is_dir():
            raise BadInput(f"output {folder} is not a folder; choose another --out")
        names = {path.name for path in folder.iterdir()}
        if names and not names & {marker, UNFINISHED}:
            raise BadInput(f"output folder {folder} holds something else; choose another --out")


def claim_output(folder: Path | str, marker: str) -> bool:
    """Make `folder` ours for writing, see `check_output`; true when it was created now.

    Earlier output may be written again; its marker is withdrawn first, so that a half-written folder never looks whole.
    """
    folder = Path(folder)
    check_output(folder, marker)
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(f"output {folder} cannot be made ({error.strerror}); choose another --out") from error
    (folder / UNFINISHED).touch()
    sync_folder(folder)
    with contextlib.suppress(FileNotFoundError):
        (folder / marker).unlink()
        sync_folder(folder)
    return created


def release_output(folder: Path | str) -> None:
    """The completion marker stands: the folder is no longer unfinished."""
    (Path(folder) / UNFINISHED).unlink(missing_ok=True)
    sync_folder(Path(folder))


@contextlib.contextmanager
def sealed_output(folder: Path | str) -> Iterator[None]:
    """Claim `folder`, let the block fill it, seal it with MANIFEST.json last."""
    claim_output(folder, MANIFEST)
    yield
    write_manifest(folder)
    release_output(folder)
