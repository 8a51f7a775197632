"""Where the tensors of a model lie in its safetensors files, read from the headers alone.

The format: 8 bytes with the header's length (little-endian), the header as JSON (name → dtype, shape and the offsets of
its bytes after the header), the tensors' bytes. https://github.com/huggingface/safetensors#format
"""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import check_plain_file, read_json, refuse_constant

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# the floats that are written or were quantised, as recipes and configurations call them
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# 40,000 tensors, a LoRA on every expert of a mixture, take 7 MB; Python's objects some ten times their JSON
_MOST_HEADER, _MOST_DIMENSIONS = 32 << 20, 8
# of a file in the model's own folder
_NAME = re.compile(r"[\w-][\w.+-]{0,200}\.safetensors", re.ASCII)
_BLOCK_BYTES = 8 << 20
# a header that is aligned so starts its tensors at a multiple
_ALIGN = 8


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `begin` counts from the start of the file, in bytes."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Length of its first dimension; 1 for a number."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.bytes // self.rows if self.rows else 0

    def read(self, first: int = 0, rows: int | None = None) -> torch.Tensor:
        """`rows` rows from `first` on (default: all) in memory of their own; a mapped file would count as used."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        buffer = bytearray(math.prod(shape) * self.dtype.itemsize)
        with open(self.path, "rb", buffering=0) as handle:
            handle.seek(self.begin + first * self.row_bytes)
            if read_into(handle, memoryview(buffer)) != len(buffer):
                raise BadInput(f"{self.path}: ends within {plain(self.name)}")
        if not buffer:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).view(shape)

    def blocks(self) -> Iterator[torch.Tensor]:
        """The tensor in blocks of rows of some MiB."""
        rows = max(1, _BLOCK_BYTES // max(1, self.row_bytes))
        for first in range(0, self.rows if self.shape else 0, rows):
            yield self.read(first, min(rows, self.rows - first))


def read_into(handle: Any, view: memoryview) -> int:
    """Fill `view` from an unbuffered file; how many bytes there were."""
    done = 0
    while done < len(view) and (count := handle.readinto(view[done:])):
        done += count
    return done


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file: its tensors in the order of their bytes, and what its header says besides."""

    path: Path
    metadata: Mapping[str, str]
    tensors: tuple[Stored, ...]
    start: int

    @classmethod
    def read(cls, path: Path) -> "WeightFile":
        """BadInput unless the header is sound, and its tensors fill the file without a gap."""
        check_plain_file(path)
        size = path.stat().st_size
        with open(path, "rb") as handle:
            head = handle.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(_MOST_HEADER, size - 8):
                raise BadInput(f"{path}: no safetensors file: its header's length is {length}")
            header = _header(path, handle.read(length))
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
            raise BadInput(f"{path}: its __metadata__ is no object of strings")
        start = 8 + length
        # an empty tensor stands before the one that begins at the same byte
        tensors = sorted(
            (_stored(path, name, entry, start) for name, entry in header.items()), key=lambda t: (t.begin, t.bytes)
        )
        end = start
        for tensor in tensors:
            if tensor.begin != end:
                raise BadInput(f"{path}: {plain(tensor.name)} begins at byte {tensor.begin}, not {end}")
            end += tensor.bytes
        if end != size:
            raise BadInput(f"{path}: {size} bytes, its header speaks of {end}")
        return cls(path, metadata, tuple(tensors), start)


def _header(path: Path, data: bytes) -> dict[str, Any]:
    try:
        # the same tensor twice, told apart by who reads, would be two models in one file
        header = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: its header is not valid JSON ({plain(str(error))})") from None
    if not isinstance(header, dict):
        raise BadInput(f"{path}: its header is no object")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} stands there twice")
        found[name] = value
    return found


def _is_text(value: Any) -> bool:
    """Whether it is a string that can be written again: half a surrogate pair cannot."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _stored(path: Path, name: str, entry: Any, start: int) -> Stored:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        # the product of very many lengths takes ages
        sound = len(shape) <= _MOST_DIMENSIONS and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{path}: cannot read what its header says of {plain(name)}") from None
    if not isinstance(code, str) or code not in DTYPES:
        raise BadInput(f"{path}: {plain(name)}: dtype {plain(str(code))} is not one of {', '.join(DTYPES)}")
    dtype = DTYPES[code]
    if not _is_text(name) or not sound or end - begin != math.prod(shape) * dtype.itemsize:
        raise BadInput(f"{path}: {plain(name)}: {plain(f'shape {shape} and bytes {begin} to {end}')} do not agree")
    return Stored(name, path, dtype, shape, start + begin)


def header_bytes(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds `tensors` (name → dtype, shape) one after the other."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    return struct.pack("<Q", len(text)) + text


@dataclass(frozen=True)
class Layout:
    """A model folder's weights. `renames` are pairs (prefix in the files, prefix of the module in memory)."""

    folder: Path
    files: tuple[WeightFile, ...]
    config: Mapping[str, Any]
    renames: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Layout":
        """BadInput where there are no safetensors files, or they and their index do not agree."""
        index = folder / INDEX
        places = _places(index) if index.exists() else {}
        names = sorted(set(places.values())) or [SINGLE]
        if SINGLE not in names and (folder / SINGLE).exists():
            raise BadInput(f"{folder}: holds {SINGLE} beside {INDEX}; readers differ in which they take, remove one")
        for name in names:
            if not (folder / name).is_file():
                raise BadInput(f"{folder}: has no {plain(name)}; give a model folder in safetensors form")
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            raise BadInput(f"{folder / 'config.json'}: no object")
        found = cls(folder, tuple(WeightFile.read(folder / name) for name in names), config, _renames(config))
        found._check(places)
        return found

    def _check(self, places: Mapping[str, str]) -> None:
        stored = [tensor for file in self.files for tensor in file.tensors]
        if twice := next((tensor for tensor in stored if self.tensors[self.parameter(tensor.name)] != tensor), None):
            raise BadInput(f"{twice.path}: {plain(twice.name)} stands in {self.folder} twice")
        found = {tensor.name: tensor.path.name for tensor in stored}
        if lost := next((name for name, file in places.items() if found.get(name) != file), None):
            raise BadInput(f"{self.folder / places[lost]}: lacks {plain(lost)}, which {INDEX} says is there")

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """By the name of the parameter in memory, as PEFT names it."""
        return {self.parameter(tensor.name): tensor for file in self.files for tensor in file.tensors}

    def parameter(self, name: str) -> str:
        """The parameter in memory that a file calls `name`."""
        for stored, loaded in self.renames:
            if name.startswith(stored):
                return loaded + name.removeprefix(stored)
        return name

    def published(self, name: str) -> str:
        """The name that transformers of any version, vLLM and llama.cpp know a stored tensor by."""
        llava = self.config.get("model_type") == "llava" and name.startswith(_TOWER) and not name.startswith(_WRAPPED)
        return _WRAPPED + name.removeprefix(_TOWER) if llava else name

    @property
    def vocabulary(self) -> int:
        """How many tokens it has, rows of its embeddings and of its head; 0 where its config does not say."""
        told = self._told("vocab_size")
        return told if isinstance(told, int) else 0

    def _told(self, key: str) -> Any:
        """What the config says of the whole model, else of its language model."""
        text = self.config.get("text_config")
        return self.config.get(key, text.get(key) if isinstance(text, dict) else None)

    @property
    def tied(self) -> bool:
        """Whether the head is the embeddings."""
        return bool(self._told("tie_word_embeddings")) and not any(
            name.endswith("lm_head.weight") for name in self.tensors
        )


# transformers writes LLaVA's tensors under the names that they had before version 4.52
_LLAVA = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
)
# of a tower that has them: a name right below it is one that transformers 5.6 and later write, and no one else reads
_TOWER, _WRAPPED = "vision_tower.", "vision_tower.vision_model."


def _renames(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return _LLAVA if config.get("model_type") == "llava" else ()


def _places(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index has it."""
    found = read_json(index)
    files = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise BadInput(f'{index}: has no "weight_map"')
    for name in set(files.values()):
        if not _NAME.fullmatch(name):
            raise BadInput(f"{index}: {plain(name)} is no safetensors file of this folder")
    return files
