"""What is known of files before they are read: digests in a folder's manifest, or in the hub's cache."""

import re
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import MANIFEST, read_json, sha256_file

_SHA256 = re.compile(r"[0-9a-f]{64}")


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's manifest by name, none where it has no manifest; BadInput where that is garbage.

    Without one, those of a snapshot in the hub's cache: its large files are links to blobs named by their digests.
    """
    path = folder / MANIFEST
    if not path.exists():
        blobs = {file.name: file.resolve().name for file in folder.iterdir() if file.is_symlink()}
        return {name: {"sha256": blob} for name, blob in blobs.items() if _SHA256.fullmatch(blob)}
    found = read_json(path)
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not all(isinstance(f, dict) and "sha256" in f for f in files.values()):
        raise BadInput(f"{path}: garbage; its folder cannot be trusted")
    return files


def check_sealed(folder: Path, path: Path) -> None:
    """BadInput, naming the file, where the folder's manifest has another digest for it, or none."""
    sealed, name = files_of(folder), path.relative_to(folder).as_posix()
    if (folder / MANIFEST).exists() and name not in sealed:
        raise BadInput(f"{path}: not in {folder / MANIFEST}")
    if name in sealed and sealed[name]["sha256"] != sha256_file(path):
        raise BadInput(f"{path}: damaged: its digest is not the one in {folder / MANIFEST}")
