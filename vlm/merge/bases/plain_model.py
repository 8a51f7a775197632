"""A model folder of plain weights, written from weights in another form a block at a time."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch

from shards.errors import BadInput, plain
from shards.files import sync_folder, write_json
from vlm.merge.layout import INDEX, Layout, Stored, WeightFile, header_bytes


@dataclass(frozen=True)
class Made:
    """A tensor that is to be written. `origin` is the file whose tensor `source` it is made of.

    `blocks` are its numbers in their order, in `dtype`.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    origin: Path
    source: str
    blocks: Callable[[], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class MadeFile:
    """A safetensors file that is to be written."""

    name: str
    tensors: Sequence[Made]
    metadata: Mapping[str, str]

    @cached_property
    def header(self) -> bytes:
        return header_bytes({made.name: (made.dtype, made.shape) for made in self.tensors}, self.metadata)

    def placed(self, folder: Path) -> WeightFile:
        """As it will lie in `folder`."""
        stored, begin = [], len(self.header)
        for made in self.tensors:
            stored.append(Stored(made.name, folder / self.name, made.dtype, made.shape, begin))
            begin += stored[-1].bytes
        return WeightFile(folder / self.name, self.metadata, tuple(stored), len(self.header))


@dataclass(frozen=True)
class PlainModel:
    """The weights and the configuration of a folder that is to be written; `renames` as a Layout has them."""

    files: Sequence[MadeFile]
    config: Mapping[str, Any]
    renames: tuple[tuple[str, str], ...] = ()

    def layout(self, folder: Path) -> Layout:
        """What `Layout.read` will find in `folder`: what can be told of it before it is there."""
        return Layout(folder, tuple(file.placed(folder) for file in self.files), self.config, self.renames)

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return sum(tensor.bytes for file in self.layout(Path()).files for tensor in file.tensors)

    def write(self, folder: Path, progress: Callable[[int], None]) -> dict[str, dict[str, Any]]:
        """The weight files, with an index where there are several; their entries for a manifest.

        `progress` hears how many bytes were written since it last did. BadInput, naming file and tensor, for a number
        that is none.
        """
        entries = {}
        for file in self.files:
            with open(folder / file.name, "wb") as handle:
                entries[file.name] = _write(file, handle, progress)
        if len(self.files) > 1:
            places = {made.name: file.name for file in self.files for made in file.tensors}
            write_json(folder / INDEX, {"metadata": {"total_size": self.bytes}, "weight_map": places})
        sync_folder(folder)
        return entries


def _write(file: MadeFile, handle: BinaryIO, progress: Callable[[int], None]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0

    def put(data: bytes | memoryview) -> None:
        nonlocal size
        digest.update(data)
        handle.write(data)
        size += len(data)
        progress(len(data))

    put(file.header)
    for placed, made in zip(file.placed(Path()).tensors, file.tensors, strict=True):
        for block in made.blocks():
            if block.is_floating_point() and not torch.isfinite(block).all():
                raise BadInput(f"{made.origin}: {plain(made.source)} holds a value that is not finite")
            if block.numel():
                put(block.reshape(-1).view(torch.uint8).numpy().data)
        if size != placed.begin + placed.bytes:
            raise BadInput(f"{made.origin}: {plain(made.source)} gave {size - placed.begin} bytes, not {placed.bytes}")
    handle.flush()
    os.fsync(handle.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}
