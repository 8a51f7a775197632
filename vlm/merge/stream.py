"""A model's weight files written again with changes, in memory for a few blocks of rows.

One thread reads and hashes, one hashes and writes, the caller's computes. What nothing changes passes through as bytes.
"""

import hashlib
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from shards.errors import BadInput, plain
from vlm.merge.changes import Change
from vlm.merge.layout import Stored, WeightFile, header_bytes, read_into

# of a block as it lies in a file; so many of them are under way on either side
_BLOCK_BYTES, _UNDER_WAY = 8 << 20, 3
# how far behind what is written the disk should have it
_BEHIND = 16 * _BLOCK_BYTES


@dataclass(frozen=True)
class Copied:
    """SHA-256 of a file that was read and of what was written for it, and that one's length."""

    read: str
    written: str
    bytes: int


class Source(Protocol):
    """What is done to the tensors of a file, by their names there."""

    def shape(self, stored: Stored) -> tuple[int, ...] | None:
        """The tensor's shape after its change; None where nothing changes it."""

    def change(self, stored: Stored) -> Change:
        """Of a tensor that has one; asked for when its turn comes, and dropped after it."""


@dataclass(frozen=True)
class _Step:
    """A tensor and how it is written."""

    stored: Stored
    changed: bool
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, stored: Stored, source: Source, dtype: torch.dtype | None) -> "_Step":
        shape = source.shape(stored)
        floats = dtype if dtype and stored.dtype.is_floating_point else stored.dtype
        return cls(stored, shape is not None, floats, stored.shape if shape is None else shape)

    @property
    def computes(self) -> bool:
        """Whether its bytes are not just the base's."""
        return self.changed or self.dtype != self.stored.dtype

    @property
    def columns(self) -> int:
        """Numbers that are not parted: a row where there is a change, which goes by rows."""
        return max(1, math.prod(self.stored.shape[1:])) if self.changed else 1

    @property
    def numbers(self) -> int:
        """Numbers of a block."""
        return max(1, _BLOCK_BYTES // self.stored.dtype.itemsize // self.columns) * self.columns

    @property
    def bytes(self) -> int:
        """What a block takes, as it is read or as it is written."""
        return self.numbers * max(self.stored.dtype.itemsize, self.dtype.itemsize)


def rewrite(
    file: WeightFile,
    out: Path,
    source: Source,
    dtype: torch.dtype | None,
    progress: Callable[[int], None] = lambda read: None,
    named: Callable[[str], str] = lambda name: name,
) -> Copied:
    """Write `out` with the tensors of `file` in their order, `named` anew, floats in `dtype` (None: each in its own).

    A changed weight is computed in float32 and rounded once. `progress` hears how many bytes were read since it last
    did. `out` is on the disk when this returns.
    """
    steps = [_Step.of(stored, source, dtype) for stored in file.tensors]
    size = max((step.bytes for step in steps), default=1)
    scratch = torch.empty(max((step.numbers for step in steps if step.computes), default=0))
    with _Reader(file, size) as reader, _Writer(out, size) as writer, _cores_left():
        header = header_bytes({named(step.stored.name): (step.dtype, step.shape) for step in steps}, file.metadata)
        writer.put(memoryview(header))
        for step in steps:
            change = source.change(step.stored) if step.changed else None
            for first, block in reader.blocks(step):
                if step.computes:
                    base = torch.frombuffer(block, dtype=step.stored.dtype)
                    _write(writer, step, change, scratch[: base.numel()].copy_(base), first)
                else:
                    writer.put(block)
                progress(len(block))
            # rows that the base has not
            for first in range(math.prod(step.stored.shape), math.prod(step.shape), step.numbers):
                _write(writer, step, change, scratch[: min(step.numbers, math.prod(step.shape) - first)].zero_(), first)
        return Copied(reader.finish(), writer.finish(), writer.bytes)


@contextmanager
def _cores_left() -> Iterator[None]:
    """Compute on the cores that the two threads that hash leave: torch's, which wait by turning, would slow them."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - 2)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(writer: "_Writer", step: _Step, change: Change | None, numbers: torch.Tensor, first: int) -> None:
    """Change `numbers`, float32, which begin with the tensor's number `first`, round and write them."""
    if change:
        change.apply(numbers.view(-1, *step.shape[1:]), first // step.columns)
    with writer.room(numbers.numel() * step.dtype.itemsize) as view:
        rounded = torch.frombuffer(view, dtype=step.dtype).copy_(numbers)
        if step.dtype == torch.float16 and torch.isinf(rounded).sum() != torch.isinf(numbers).sum():
            raise BadInput(
                f"{step.stored.path}: {plain(step.stored.name)} goes beyond float16; write bfloat16 or float32"
            )


class _Reader:
    """A file's tensors in blocks, read and hashed in a thread ahead of who takes them."""

    def __init__(self, file: WeightFile, size: int) -> None:
        self.path = file.path
        self._hash = hashlib.sha256()
        self._ring = [bytearray(size) for _ in range(_UNDER_WAY)]
        self._pool = ThreadPoolExecutor(1, "merge-read")
        self._handle = open(file.path, "rb", buffering=0)  # noqa: SIM115
        self._hash.update(self._handle.read(file.start))

    def blocks(self, step: _Step) -> Iterator[tuple[int, memoryview]]:
        """(number of its first number, bytes) of the blocks of the tensor that comes next; good until the next one."""
        itemsize = step.stored.dtype.itemsize
        spans = [
            (first, min(step.numbers * itemsize, step.stored.bytes - first * itemsize))
            for first in range(0, step.stored.bytes // itemsize, step.numbers)
        ]
        asked: deque[Future[memoryview]] = deque()
        for i, (first, _) in enumerate(spans):
            while len(asked) < len(self._ring) - 1 and i + len(asked) < len(spans):
                ahead = i + len(asked)
                asked.append(self._pool.submit(self._read, self._ring[ahead % len(self._ring)], spans[ahead][1]))
            yield first, asked.popleft().result()

    def _read(self, buffer: bytearray, length: int) -> memoryview:
        view = memoryview(buffer)[:length]
        if read_into(self._handle, view) != length:
            raise BadInput(f"{self.path}: ends too soon; it was changed while it was read")
        self._hash.update(view)
        return view

    def finish(self) -> str:
        """The digest of the whole file."""
        return self._hash.hexdigest()

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._handle.close()


class _Writer:
    """A file written and hashed in a thread behind who gives it."""

    def __init__(self, path: Path, size: int) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._ring = deque((bytearray(size), Future[None]()) for _ in range(_UNDER_WAY))
        for _, done in self._ring:
            done.set_result(None)
        self._pool = ThreadPoolExecutor(1, "merge-write")
        self._handle = open(path, "wb", buffering=0)  # noqa: SIM115

    @contextmanager
    def room(self, length: int) -> Iterator[memoryview]:
        """Memory to fill with the next `length` bytes."""
        buffer, done = self._ring.popleft()
        done.result()
        view = memoryview(buffer)[:length]
        yield view
        self._ring.append((buffer, self._pool.submit(self._write, view)))

    def put(self, data: memoryview) -> None:
        """The next bytes, however many."""
        most = len(self._ring[0][0])
        for first in range(0, len(data), most):
            part = data[first : first + most]
            with self.room(len(part)) as view:
                view[:] = part

    def _write(self, view: memoryview) -> None:
        self._hash.update(view)
        begin, left = self.bytes, view
        while left:
            left = left[self._handle.write(left) :]
        self.bytes += len(view)
        if sys.platform == "linux":
            # on to the disk at once, and out of the page cache when it is there: that memory is others'
            for first in (begin, begin - _BEHIND):
                os.posix_fadvise(self._handle.fileno(), max(0, first), len(view), os.POSIX_FADV_DONTNEED)

    def finish(self) -> str:
        """Have all on the disk; its digest."""
        for _, done in self._ring:
            done.result()
        os.fsync(self._handle.fileno())
        return self._hash.hexdigest()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._handle.close()
