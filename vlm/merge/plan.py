"""What is merged: a base, an adapter or several, how they are combined, and the dtype that is written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput
from shards.files import MANIFEST, sha256_file
from vlm.merge.adapter import CONFIG, WEIGHTS, Adapter, Edits
from vlm.merge.bases.as_nf4 import AsNf4
from vlm.merge.bases.dequantise import Original, quantised
from vlm.merge.combine import Combination, Combined
from vlm.merge.layout import FLOATS, Layout
from vlm.merge.runs import check_base
from vlm.merge.seals import check_sealed, files_of
from vlm.merge.stream import Source


@dataclass(frozen=True)
class MergePlan:
    """Folders of the base and of the adapters. `dtype` is the output's, "" keeps each tensor's own.

    Several adapters, or one by a weight, are combined as `how` says (`cat` where it is None), by default by equal
    `weights` whose sum is 1. `dequantise`: the base is in 4 bits or a GGUF file, and made plain first. `as_nf4`: it is
    plain, and the adapter was trained over it in NF4.
    """

    base: Path
    adapters: Sequence[Path]
    out: Path
    dtype: str = ""
    weights: Sequence[float] = ()
    how: Combination | None = None
    dequantise: bool = False
    as_nf4: bool = False

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in FLOATS:
            raise BadInput(f"--dtype {self.dtype}: not one of {', '.join(FLOATS)}")
        if self.dequantise and self.as_nf4:
            raise BadInput("--as-nf4: is for a plain base; one that is dequantised has its quantisation in it")
        if not self.adapters:
            raise BadInput("no adapter to merge; name its folder, or a run's")
        for folder in self.adapters:
            for name in (WEIGHTS, CONFIG):
                if not (folder / name).is_file():
                    what = f"holds no {name}" if folder.is_dir() else "does not exist"
                    raise BadInput(f"{folder} {what}; give an adapter's folder, a checkpoint's or a run's")

    @property
    def combines(self) -> bool:
        """Whether there is more to do than to merge one adapter as it is."""
        return len(self.adapters) > 1 or bool(self.weights) or self.how is not None

    @property
    def read(self) -> list[Path]:
        """Folders and files that are read, which nothing may be written into."""
        return [self.base, *self.adapters]

    @property
    def takes_long(self) -> bool:
        """Whether what is done to a weight is better computed once."""
        return self.how is not None and self.how.kind not in ("cat", "linear")

    def original(self) -> Original | None:
        """The base where it has to be made plain first; BadInput unless that is asked for just then."""
        if quantised(self.base) == self.dequantise:
            return Original.read(self.base, self.torch_dtype) if self.dequantise else None
        if self.dequantise:
            raise BadInput(f"--dequantise: {self.base} is neither a folder in 4 bits nor a GGUF file")
        raise BadInput(f"--base {self.base}: its weights are quantised; --dequantise has them made plain first")

    def over_nf4(self, layout: Layout, source: Source) -> Source:
        """`source` on top of what NF4 makes of the base, where that is asked for."""
        return AsNf4(layout, source) if self.as_nf4 else source

    def source(self, layout: Layout) -> Source:
        """The changes, checked against the base."""
        adapters = [Adapter.read(folder) for folder in self.adapters]
        if not self.combines:
            adapters[0].check(layout)
            return Edits(layout, adapters[0])
        combined = Combined(layout, adapters, self._weights, self.how or Combination())
        combined.check()
        return combined

    @property
    def _weights(self) -> list[float]:
        return [*self.weights] or [1 / len(self.adapters)] * len(self.adapters)

    def check_seals(self) -> None:
        """BadInput, naming the file, where one differs from the manifest it stands in, or an adapter has another base.

        Of the base's weights that is found while they are read.
        """
        for folder in self.adapters:
            check_base(folder, self.base)
            for name in (WEIGHTS, CONFIG):
                check_sealed(folder, folder / name)
                check_sealed(folder.parent, folder / name)
        for path in sorted(self.base.iterdir() if self.base.is_dir() else ()):
            if path.is_file() and path.suffix != ".safetensors" and path.name != MANIFEST:
                check_sealed(self.base, path)

    def inputs(self, layout: Layout, original: Original | None = None) -> dict[str, Any]:
        """What the weights that are written depend on. A base without a manifest is known by sizes and times."""
        adapters = [sha256_file(folder / name) for folder in self.adapters for name in (WEIGHTS, CONFIG)]
        base = original.inputs() if original else self._base_inputs(layout)
        return {"base": base, "adapters": adapters, "dtype": self.dtype, **self.options}

    def _base_inputs(self, layout: Layout) -> dict[str, Any]:
        sealed = files_of(self.base)
        base = {}
        for file in layout.files:
            found, name = file.path.stat(), file.path.name
            base[name] = sealed[name]["sha256"] if name in sealed else f"{found.st_size} {found.st_mtime_ns}"
        base["config.json"] = sha256_file(self.base / "config.json")
        return base

    @property
    def options(self) -> dict[str, Any]:
        """How adapters are combined, and over what; empty for one that is merged as it is."""
        combined = {"weights": self._weights, **asdict(self.how or Combination())} if self.combines else {}
        return {**combined, **({"as_nf4": True} if self.as_nf4 else {})}

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return FLOATS[self.dtype] if self.dtype else None
