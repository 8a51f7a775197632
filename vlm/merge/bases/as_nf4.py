"""Plain weights as NF4 makes them, for an adapter that was trained over a base quantised as it was loaded (QLoRA).

Each weight is taken to 4 bits with double quantisation and back, to the bit as bitsandbytes does it on a CPU, before an
adapter's own changes. Quantised are, as in `vlm.model.adapters.quantised`, the language model's linear layers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.nn.functional import pad

from shards.errors import BadInput
from vlm.merge.bases.four_bit import TABLES
from vlm.merge.changes import Change, Several, finite
from vlm.merge.layout import FLOATS, Layout, Stored
from vlm.merge.stream import Source

# numbers that share an absmax, and absmax that share theirs
_BLOCK, _NESTED_BLOCK = 64, 256
# numbers of a step of work, in memory that stays mapped from step to step (`vlm.merge.run`)
_NUMBERS = 1 << 17
_TINY = 1e-38


def _dynamic_table() -> torch.Tensor:
    """The 256 numbers of a byte: seven decades, each with twice as many steps as the one below. Source: Dettmers,
    "8-Bit Approximations for Parallelism in Deep Learning" (2015)."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        steps = 10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        found += [*steps.tolist(), *(-steps).tolist()]
    return torch.tensor(sorted(found))


def _between(table: torch.Tensor) -> torch.Tensor:
    return (table[:-1] + table[1:]) / 2


_BYTES = _dynamic_table()
_NF4_EDGES, _BYTE_EDGES = _between(TABLES["nf4"]), _between(_BYTES)
# of [-1, 1]: at most one edge lies in each
_BINS = 64


def _bins(numbers: torch.Tensor) -> torch.Tensor:
    return ((numbers + 1) * (_BINS / 2)).int()


# the edges below each bin, and the one to compare with there
_BELOW = torch.searchsorted(_bins(_NF4_EDGES), torch.arange(_BINS + 1), out_int32=True)
_EDGE = torch.cat([_NF4_EDGES, torch.ones(1)])[_BELOW]


def _codes(numbers: torch.Tensor) -> torch.Tensor:
    """What `torch.bucketize(numbers, _NF4_EDGES)` gives, int32, in a sixth of its time. Numbers lie within [-1, 1]."""
    bins = _bins(numbers)
    return _BELOW.index_select(0, bins) + (numbers > _EDGE.index_select(0, bins))


@dataclass(frozen=True)
class Nf4:
    """A weight to NF4 and back, rounded to its own dtype."""

    base: Stored

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        numbers = rows_rC.view(-1)
        begin = first * math.prod(self.base.shape[1:])
        for start in range(0, numbers.numel(), _NUMBERS):
            part = numbers[start : start + _NUMBERS]
            part.copy_(self._quantised(part, begin + start))

    def _quantised(self, numbers: torch.Tensor, begin: int) -> torch.Tensor:
        """`numbers`, of which the first is the weight's number `begin`."""
        lead = begin % _BLOCK
        blocks = pad(numbers, (lead, -(lead + numbers.numel()) % _BLOCK)).view(-1, _BLOCK)
        span = slice(begin // _BLOCK, begin // _BLOCK + len(blocks))
        absmax, restored = (each[span].unsqueeze(1) for each in self._scales)
        scaled = blocks * (1.0 / absmax.clamp(min=_TINY))
        if span.stop * _BLOCK > math.prod(self.base.shape):
            # bitsandbytes divides in a block that is not full
            scaled[-1] = blocks[-1] / absmax[-1]
        codes = _codes(scaled.clamp_(-1, 1).view(-1))
        values = TABLES["nf4"].index_select(0, codes).view(-1, _BLOCK).mul_(restored).view(-1)
        return values[lead : lead + numbers.numel()].to(self.base.dtype)

    @cached_property
    def _scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each block the largest magnitude, and what double quantisation makes of it."""
        flat = replace(self.base, shape=(math.prod(self.base.shape),))
        parts = (part.float() for block in flat.blocks() for part in block.split(_NUMBERS))
        absmax = torch.cat([_absmax(finite(self.base, part), _BLOCK) for part in parts])
        if flat.rows % _BLOCK:
            absmax[-1:].clamp_(min=_TINY)
        with _one_thread():
            offset = absmax.mean()
        rest = absmax - offset
        nested = _absmax(rest, _NESTED_BLOCK)
        scales = nested.repeat_interleave(_NESTED_BLOCK)[: rest.numel()]
        # it takes the nearest to one of 65536 places
        places = ((rest * (1.0 / scales) + 1) * 0.5 * 65535 + 0.5).int().float() / 65535 * 2 - 1
        codes = torch.bucketize(places, _BYTE_EDGES, out_int32=True)
        codes[scales == 0] = 0
        return absmax, _BYTES[codes] * scales + offset


def _absmax(numbers: torch.Tensor, block: int) -> torch.Tensor:
    return pad(numbers, (0, -numbers.numel() % block)).view(-1, block).abs().amax(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A sum's last bit depends on how many threads share it; what is written must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class AsNf4:
    """The changes of `source` on top of weights as NF4 makes them: a `vlm.merge.stream.Source`."""

    layout: Layout
    source: Source

    def __post_init__(self) -> None:
        if not self._quantised:
            raise BadInput(f"--as-nf4: {self.layout.folder} holds no linear layers of a language model")
        for name in sorted(self._quantised):
            stored = self.layout.tensors[name]
            if stored.dtype not in FLOATS.values():
                raise BadInput(
                    f"--as-nf4: {stored.path}: {name} is {stored.dtype}; NF4 is made of floats of 16 or 32 bits"
                )

    def shape(self, stored: Stored) -> tuple[int, ...] | None:
        """As the source has it; a weight that only NF4 changes keeps its own."""
        found = self.source.shape(stored)
        return stored.shape if found is None and self._changes(stored) else found

    def change(self, stored: Stored) -> Change:
        if not self._changes(stored):
            return self.source.change(stored)
        if self.source.shape(stored) is None:
            return Nf4(stored)
        return Several([Nf4(stored), self.source.change(stored)])

    def _changes(self, stored: Stored) -> bool:
        return self.layout.parameter(stored.name) in self._quantised

    @cached_property
    def _quantised(self) -> frozenset[str]:
        """Parameters that are weights of the language model's linear layers, the head apart."""
        from torch import nn

        from vlm.merge.streamed import empty_model

        model = empty_model(self.layout.folder)
        language = model.get_decoder()
        names = {id(module): name for name, module in model.named_modules()}
        linear = (f"{names[id(each)]}.weight" for each in language.modules() if isinstance(each, nn.Linear))
        return frozenset(name for name in linear if name in self.layout.tensors)
