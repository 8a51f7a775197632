"""A base in 4 bits or in a GGUF file made a plain model folder, which is merged into and proven against.

Streamed: memory does not grow with the model. The weights are to the bit what bitsandbytes, or transformers, makes of
them.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import MANIFEST, read_json, sha256_file, write_json
from vlm.merge.bases.four_bit import four_bit_model
from vlm.merge.bases.gguf_base import gguf_file, gguf_model, quantisations
from vlm.merge.bases.gguf_file import GgufFile
from vlm.merge.bases.plain_model import PlainModel
from vlm.merge.layout import Layout
from vlm.merge.seals import files_of

_CONFIG, _ORIGINAL = "config.json", "original"


def quantised(base: Path) -> bool:
    """Whether a base is one that has to be made plain first."""
    if base.is_file():
        return base.suffix == ".gguf"
    config = read_json(base / _CONFIG) if (base / _CONFIG).is_file() else {}
    return isinstance(config, dict) and bool(config.get("quantization_config"))


@dataclass(frozen=True)
class Original:
    """A quantised base: its `form` in words, and the plain `model` that it makes."""

    path: Path
    form: str
    model: PlainModel
    file: GgufFile | None = None

    @classmethod
    def read(cls, base: Path, dtype: torch.dtype | None = None) -> "Original":
        """Weights of a GGUF file become `dtype` (None: float32), those in 4 bits what they were quantised from.

        BadInput, naming file and tensor, for what cannot be made plain. No weights are read yet.
        """
        if base.is_file():
            file = gguf_file(base)
            return cls(base, f"GGUF ({quantisations(file)})", gguf_model(file, dtype), file)
        return cls(base, "bitsandbytes, 4 bits", four_bit_model(base))

    @property
    def layout(self) -> Layout:
        """Of the plain model, which need not be there yet."""
        return self.model.layout(self.path)

    @property
    def licence(self) -> str:
        """As a GGUF file tells it."""
        told = self.file.told.get("general.license") if self.file else None
        return told if isinstance(told, str) else ""

    @property
    def digest(self) -> str:
        """`weights_digest` of the base as it was given."""
        from vlm.model.parts import weights_digest

        return weights_digest(self.path)

    def inputs(self) -> dict[str, Any]:
        """What the plain weights depend on; files without a manifest are known by sizes and times."""
        sealed = {name: entry["sha256"] for name, entry in self._sealed().items()}
        files = [self.path] if self.path.is_file() else sorted(self.path.iterdir())
        found = {file.name: file.stat() for file in files if file.is_file() and file.name != MANIFEST}
        known = {name: sealed.get(name, f"{stat.st_size} {stat.st_mtime_ns}") for name, stat in found.items()}
        dtypes = sorted({str(made.dtype) for file in self.model.files for made in file.tensors})
        return {**known, "dtypes": dtypes}

    def write(self, folder: Path, progress: Callable[[int], None] = lambda written: None) -> None:
        """Write the plain model into `folder`, unless it lies there whole already; what else lies there goes.

        `progress` hears how many bytes were written since it last did. BadInput, naming the file, for one that is
        damaged.
        """
        inputs = self.inputs()
        manifest = folder / MANIFEST
        if manifest.exists() and read_json(manifest).get(_ORIGINAL) == inputs:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, entry in self._sealed().items():
            if name.endswith(".safetensors") and sha256_file(self.path / name) != entry["sha256"]:
                raise BadInput(f"{self.path / name}: damaged: its digest is not the one in {MANIFEST}")
        files = self.model.write(folder, progress)
        if self.file:
            _gguf_companions(self.file, self.model, folder)
        else:
            _companions(self.path, folder)
        for path in sorted(folder.iterdir()):
            files.setdefault(path.name, {"bytes": path.stat().st_size, "sha256": sha256_file(path)})
        write_json(manifest, {"files": files, _ORIGINAL: inputs})

    def _sealed(self) -> Mapping[str, Mapping[str, Any]]:
        return {} if self.path.is_file() else files_of(self.path)


def _companions(base: Path, folder: Path) -> None:
    from vlm.merge.companions import CARD, Facts, companions

    companions(base, folder, Facts())
    (folder / CARD).unlink()


def _gguf_companions(file: GgufFile, model: PlainModel, folder: Path) -> None:
    """config.json and the tokenizer's files as transformers makes them of a GGUF file."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from vlm.model.parts import UNREADABLE, Part, load_part_tokenizer

    told = dict(model.config)
    kind = told.pop("model_type")
    try:
        config = AutoConfig.for_model(kind, **told)
    except UNREADABLE as error:
        raise BadInput(
            f"{file.path}: its configuration cannot be read ({plain(' '.join(str(error).split()))})"
        ) from error
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    config.dtype = model.files[0].tensors[0].dtype
    write_json(folder / _CONFIG, config.to_diff_dict() | {"model_type": kind})
    if "tokenizer.ggml.tokens" in file.told:
        load_part_tokenizer(Part("--base", file.path.name, file.path), kind).save_pretrained(folder)
