"""The output folder of a merge: built beside its place, file after file, and put there whole.

.OUT.merging holds what is done. A merge that was killed goes on with the file that was not; one of other inputs starts
anew. Streaming is deterministic: a merge that went on wrote the same bytes as an unbroken one.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import MANIFEST, check_output, read_json, sha256_file, sync_folder, write_json
from shards.lock import lock
from vlm.merge.layout import INDEX, Layout, WeightFile
from vlm.merge.seals import files_of
from vlm.merge.stream import Copied, Source, rewrite

RECORD = "merge.json"
# a plain base made of a quantised one knows itself what it was made from
BASE = "base"
MODEL, CHANGES, _INPUTS, _DONE, _OLD = "model", "changes", "inputs.json", "done.json", "old"


def check_place(out: Path, inputs: Sequence[Path]) -> None:
    """BadInput unless `out` is free, or holds a merged model and nothing else, which may be replaced by another."""
    if out.is_symlink():
        raise BadInput(f"--out {out}: a link; name the folder itself")
    check_output(out, MANIFEST)
    check_apart(out, inputs)
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not found:
        return
    if RECORD not in found:
        raise BadInput(f"--out {out}: holds a model that was not merged; choose another folder")
    if foreign := found - {MANIFEST, *files_of(out)}:
        raise BadInput(f"--out {out}: holds {plain(min(foreign))}, no file of a merge; choose another folder")


def check_apart(out: Path, inputs: Sequence[Path]) -> None:
    """BadInput where `out` holds one of the inputs, or lies in one."""
    for given in inputs:
        if given.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(given.resolve()):
            raise BadInput(f"--out {out}: is, holds or lies in {given}, which is read; choose another folder")


@contextmanager
def workshop(out: Path, inputs: Mapping[str, Any], read: Sequence[Path]) -> Iterator[Path]:
    """The folder to work in, alone; what it holds was made from just these inputs, read from the folders `read`.

    BadInput where `out` holds somebody else's files, or another merge is at work on it.
    """
    check_place(out, read)
    out = out.absolute()
    folder = out.with_name(f".{out.name}.merging")
    try:
        if link := next((path for path in (folder, folder / MODEL) if path.is_symlink()), None):
            raise BadInput(f"{link}: a link, which no merge makes; remove it")
        (folder / MODEL).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(f"--out {out}: cannot be made ({error.strerror})") from error
    with open(folder / "lock", "ab") as handle:
        if not lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise BadInput(f"{folder}: another merge is at work there; wait for it or choose another --out")
        if (folder / _OLD).exists() and not out.exists():
            # killed between the two renames of `put`
            os.rename(folder / _OLD, out)
        if _read(folder / _INPUTS) != inputs:
            (folder / _DONE).unlink(missing_ok=True)
            shutil.rmtree(folder / MODEL)
            shutil.rmtree(folder / CHANGES, ignore_errors=True)
            (folder / MODEL).mkdir()
            write_json(folder / _INPUTS, inputs)
        yield folder


def write_weights(
    layout: Layout, source: Source, dtype: torch.dtype | None, folder: Path, progress: Callable[[int], None]
) -> dict[str, Copied]:
    """The weight files in `folder`/model, with an index where the base has one: file name → what was read and written.

    BadInput, naming the file, where the base's bytes are not what its manifest says.
    """
    model, sealed = folder / MODEL, files_of(layout.folder)
    done = _whole(folder)
    for path in model.iterdir():
        if path.name not in done:
            # of a merge that was killed; whatever lies here is sealed at the end
            path.unlink()
    for file in layout.files:
        name = file.path.name
        if name in done:
            progress(file.path.stat().st_size - file.start)
            continue
        copied = rewrite(file, model / name, source, dtype, progress, layout.published)
        if name in sealed and sealed[name]["sha256"] != copied.read:
            teller = MANIFEST if (layout.folder / MANIFEST).exists() else "the hub's cache"
            raise BadInput(f"{file.path}: damaged: its digest is not the one in {teller}")
        sync_folder(model)
        done[name] = copied
        write_json(folder / _DONE, {each: asdict(it) for each, it in done.items()})
    if (layout.folder / INDEX).exists():
        index = read_json(layout.folder / INDEX)
        size = sum(tensor.bytes for name in done for tensor in WeightFile.read(model / name).tensors)
        places = {layout.published(tensor): file for tensor, file in index["weight_map"].items()}
        told = index.get("metadata")
        metadata = {**(told if isinstance(told, dict) else {}), "total_size": size}
        write_json(model / INDEX, {**index, "weight_map": places, "metadata": metadata})
    return done


def put(folder: Path, out: Path, written: Mapping[str, Copied]) -> None:
    """Seal `folder`/model and put it in the place of `out`, where an earlier output of ours may stand."""
    model, files = folder / MODEL, {}
    for path in sorted(model.iterdir()):
        if path.name != MANIFEST:
            digest = written[path.name].written if path.name in written else sha256_file(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    write_json(model / MANIFEST, {"files": files})
    if out.exists():
        shutil.rmtree(folder / _OLD, ignore_errors=True)
        os.rename(out, folder / _OLD)
    os.rename(model, out)
    sync_folder(out.absolute().parent)
    # the next merge may be there already
    shutil.rmtree(folder, ignore_errors=True)


def _whole(folder: Path) -> dict[str, Copied]:
    """The files that are done and still what was written, by which they will be sealed.

    One that was killed after `put` says so of files that are no longer here.
    """
    told, there = _read(folder / _DONE), {path.name: path for path in (folder / MODEL).iterdir()}
    done = {name: Copied(**told[name]) for name in there if name in told}
    return {name: copied for name, copied in done.items() if sha256_file(there[name]) == copied.written}


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise BadInput(f"{path}: no object")
    return found
