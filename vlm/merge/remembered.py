"""Combined matrices that take long to compute, kept on the disk for the proof and for a merge that goes on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from shards.files import atomic_file
from vlm.merge.changes import Change, LowRank
from vlm.merge.layout import Stored, WeightFile, header_bytes
from vlm.merge.stream import Source


@dataclass(frozen=True)
class Remembered:
    """A source whose low-rank changes are computed once, and then read from `folder`."""

    source: Source
    folder: Path

    def shape(self, stored: Stored) -> tuple[int, ...] | None:
        return self.source.shape(stored)

    def change(self, stored: Stored) -> Change:
        path = self.folder / f"{hashlib.sha256(stored.name.encode()).hexdigest()[:32]}.safetensors"
        if path.exists():
            kept = {tensor.name: tensor.read() for tensor in WeightFile.read(path).tensors}
            return LowRank(kept["A"], kept["B"], 1.0)
        found = self.source.change(stored)
        if isinstance(found, LowRank) and found.scale == 1.0 and found.magnitude_O is None:
            self.folder.mkdir(exist_ok=True)
            parts = {"A": found.a_RC.contiguous(), "B": found.b_OR.contiguous()}
            with atomic_file(path) as handle:
                handle.write(header_bytes({name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}, {}))
                for part in parts.values():
                    handle.write(part.view(torch.uint8).numpy().data)
        return found
