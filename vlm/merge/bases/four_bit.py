"""Weights in 4 bits as bitsandbytes writes them into a folder, made plain again without bitsandbytes.

Numbers in blocks are indices into a table of 16, two a byte, times the block's largest magnitude (absmax). With double
quantisation those are bytes too: times their own blocks' absmax, plus an offset. Source: Dettmers et al., "QLoRA"
(2023).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import refuse_constant
from vlm.merge.bases.plain_model import Made, MadeFile, PlainModel
from vlm.merge.layout import FLOATS, Layout, Stored

TABLES = {
    "nf4": torch.tensor([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]),
    # a sign, and twelfths
    "fp4": torch.tensor([
        0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0,
    ]) / 12,
}  # fmt: skip
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_STATE = ".quant_state.bitsandbytes__"
# beside a weight in 4 bits, by these endings of its name
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *(f"{_STATE[1:]}{kind}" for kind in TABLES))
_MOST_STATE = 1 << 16
# numbers of a block of work, a multiple of every block of 4-bit ones, in memory that stays mapped
_NUMBERS = 1 << 17


@dataclass(frozen=True)
class Nested:
    """How absmax were quantised: `codes` index `table`, times `absmax` of blocks of `blocksize`, plus `offset`."""

    table: Stored
    absmax: Stored
    blocksize: int
    offset: float

    def restore(self, codes: torch.Tensor) -> torch.Tensor:
        """The absmax, float32."""
        scales = self.absmax.read().repeat_interleave(self.blocksize)[: codes.numel()]
        return self.table.read()[codes.int()] * scales + self.offset


@dataclass(frozen=True)
class FourBit:
    """A weight in 4 bits: `packed` holds its indices, whatever dtype the file says of them."""

    packed: Stored
    absmax: Stored
    kind: str
    blocksize: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    nested: Nested | None

    @classmethod
    def read(cls, packed: Stored, parts: Mapping[str, Stored]) -> "FourBit":
        """BadInput, naming file and tensor, unless it and what stands beside it agree in every size."""
        kind = next(kind for kind in TABLES if f"{_STATE[1:]}{kind}" in parts)
        state = _State(packed, parts, parts[f"{_STATE[1:]}{kind}"])
        shape, blocksize = state.shape(), state.blocksize("blocksize")
        numbers = math.prod(shape)
        count = -(-numbers // blocksize)
        absmax = state.part("absmax")
        nested = None
        if "nested_absmax" in parts:
            block = state.blocksize("nested_blocksize")
            nested = Nested(state.part("nested_quant_map"), state.part("nested_absmax"), block, state.offset())
            state.expect(nested.table, torch.float32, 256)
            state.expect(nested.absmax, torch.float32, -(-count // block))
        state.expect(absmax, torch.uint8 if nested else torch.float32, count)
        if packed.bytes != -(-numbers // 2):
            raise state.wrong(f"{packed.bytes} bytes for {numbers} numbers")
        state.expect(state.part("quant_map"), torch.float32, 16)
        if not torch.allclose(parts["quant_map"].read().view(-1), TABLES[kind], atol=1e-3):
            raise state.wrong(f"its quant_map is not that of {kind}")
        return cls(packed, absmax, kind, blocksize, state.dtype(), shape, nested)

    def blocks(self) -> Iterator[torch.Tensor]:
        """Its numbers, flat, as bitsandbytes' dequantize_4bit gives them."""
        packed = replace(self.packed, dtype=torch.uint8, shape=(self.packed.bytes,))
        numbers, table = math.prod(self.shape), TABLES[self.kind]
        absmax = self.absmax.read().view(-1)
        if self.nested:
            absmax = self.nested.restore(absmax)
        for first in range(0, numbers, _NUMBERS):
            count = min(_NUMBERS, numbers - first)
            pairs = packed.read(first // 2, -(-count // 2))
            codes = torch.stack([pairs >> 4, pairs & 15], dim=1).view(-1)[:count]
            begin = first // self.blocksize
            scales = absmax[begin : begin - (-count // self.blocksize)].repeat_interleave(self.blocksize)[:count]
            yield table.index_select(0, codes.int()).mul_(scales).to(self.dtype)


@dataclass(frozen=True)
class _State:
    """What a file says of a weight in 4 bits, checked as it is asked for."""

    packed: Stored
    parts: Mapping[str, Stored]
    stored: Stored

    def told(self, key: str) -> Any:
        if self.stored.bytes > _MOST_STATE:
            raise self.wrong(f"its quant_state takes {self.stored.bytes} bytes")
        try:
            data = self.stored.read().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            return json.loads(data, parse_constant=refuse_constant)[key]
        except (ValueError, RecursionError, LookupError, TypeError, RuntimeError):
            raise self.wrong(f"its quant_state tells no {key}") from None

    def shape(self) -> tuple[int, ...]:
        told = self.told("shape")
        if not isinstance(told, list) or len(told) > 8 or not all(type(n) is int and 0 < n < 2**40 for n in told):
            raise self.wrong("its quant_state tells no shape of a tensor")
        return tuple(told)

    def blocksize(self, key: str) -> int:
        told = self.told(key)
        if type(told) is not int or told not in BLOCKS:
            raise self.wrong(f"its {key} is none of {', '.join(map(str, BLOCKS))}")
        return told

    def dtype(self) -> torch.dtype:
        told = self.told("dtype")
        if not isinstance(told, str) or told not in FLOATS:
            raise self.wrong(f"it was quantised from none of {', '.join(FLOATS)}")
        return FLOATS[told]

    def offset(self) -> float:
        told = self.told("nested_offset")
        if type(told) not in (int, float) or not math.isfinite(told):
            raise self.wrong("its nested_offset is no number")
        return float(told)

    def part(self, name: str) -> Stored:
        if name not in self.parts:
            raise self.wrong(f"its {name} is missing")
        return self.parts[name]

    def expect(self, stored: Stored, dtype: torch.dtype, count: int) -> None:
        if stored.dtype != dtype or math.prod(stored.shape) != count:
            name = stored.name.rpartition(".")[2]
            raise self.wrong(f"its {name} is {stored.dtype} of shape {stored.shape}, not {count} of {dtype}")

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.packed.path}: {plain(self.packed.name)}: {plain(what)}")


def four_bit_model(folder: Path) -> PlainModel:
    """The folder's model with all weights plain: those in 4 bits in the dtype that they were quantised from.

    BadInput, naming file and tensor, for another quantisation or sizes that do not agree.
    """
    layout = Layout.read(folder)
    told = layout.config.get("quantization_config")
    if not isinstance(told, dict) or not (told.get("load_in_4bit") or told.get("_load_in_4bit")):
        method = told.get("quant_method") if isinstance(told, dict) else None
        raise BadInput(
            f"{folder / 'config.json'}: quantised by {plain(str(method))}; a base is made plain from bitsandbytes' 4 "
            "bits or from GGUF"
        )
    config = {key: value for key, value in layout.config.items() if key != "quantization_config"}
    beside = _beside(layout)
    files = []
    for file in layout.files:
        made = [_made(tensor, beside) for tensor in file.tensors if _weight_of(tensor.name) not in beside]
        files.append(MadeFile(file.path.name, made, file.metadata))
    return PlainModel([file for file in files if file.tensors], config, layout.renames)


def _weight_of(name: str) -> str:
    """The weight beside which a tensor of this name would stand; "" for other names."""
    part = next((part for part in _PARTS if name.endswith(f".{part}")), None)
    return name.removesuffix(f".{part}") if part else ""


def _beside(layout: Layout) -> dict[str, dict[str, Stored]]:
    """What stands beside each weight that is in 4 bits, wherever the shards put it."""
    found: dict[str, dict[str, Stored]] = {}
    stored = {tensor.name: tensor for file in layout.files for tensor in file.tensors}
    for name, tensor in stored.items():
        if weight := _weight_of(name):
            found.setdefault(weight, {})[name.removeprefix(f"{weight}.")] = tensor
    for weight, parts in found.items():
        first = next(iter(parts.values()))
        if weight not in stored or sum(f"{_STATE[1:]}{kind}" in parts for kind in TABLES) != 1:
            raise BadInput(f"{first.path}: {plain(first.name)} stands beside no weight in 4 bits that says how")
    return found


def _made(tensor: Stored, beside: Mapping[str, Mapping[str, Stored]]) -> Made:
    if tensor.name in beside:
        weight = FourBit.read(tensor, beside[tensor.name])
        return Made(tensor.name, weight.dtype, weight.shape, tensor.path, tensor.name, weight.blocks)
    if not tensor.dtype.is_floating_point and tensor.name.endswith(".weight"):
        raise BadInput(f"{tensor.path}: {plain(tensor.name)} is {tensor.dtype}, and nothing says how it was quantised")
    return Made(tensor.name, tensor.dtype, tensor.shape, tensor.path, tensor.name, partial(_as_it_is, tensor))


def _as_it_is(tensor: Stored) -> Iterator[torch.Tensor]:
    return tensor.blocks() if tensor.shape else iter([tensor.read()])
