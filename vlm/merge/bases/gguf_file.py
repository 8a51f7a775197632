"""What a GGUF file says of itself and where its tensors lie, read strictly.

The package gguf has a reader too, which loops as often as a file tells it to and takes a gigabyte for a vocabulary of
262,144 tokens. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import BadInput, plain
from shards.files import check_plain_file

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_MOST_ENTRIES, _MOST_NAME, _MOST_TEXT, _MOST_DIMENSIONS = 1 << 17, 1 << 10, 1 << 22, 4


@dataclass(frozen=True)
class Packed:
    """A tensor in blocks of some numbers and bytes; `begin` counts from the start of the file.

    `type` is the format's number for how they are packed; `shape` stands in torch's order.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    begin: int
    block_numbers: int
    block_bytes: int

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.block_numbers * self.block_bytes

    @property
    def bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufFile:
    """`told` has the file's numbers and texts, and of an array its length."""

    path: Path
    told: Mapping[str, Any]
    tensors: Mapping[str, Packed]

    @classmethod
    def read(cls, path: Path, sizes: Mapping[int, tuple[int, int]]) -> "GgufFile":
        """`sizes`: (numbers, bytes) of a block of each type. BadInput, naming file and tensor, for what is unsound."""
        check_plain_file(path)
        with open(path, "rb") as handle:
            return _Reading(path, handle, os.fstat(handle.fileno()).st_size, sizes).file()


@dataclass
class _Reading:
    path: Path
    handle: IO[bytes]
    size: int
    sizes: Mapping[int, tuple[int, int]]

    def file(self) -> GgufFile:
        if self.handle.read(4) != _MAGIC:
            raise self.wrong("no GGUF file")
        version, tensors, entries = self.numbers("<IQQ")
        if version not in _VERSIONS:
            raise self.wrong(f"GGUF of version {version}; {' and '.join(map(str, _VERSIONS))} are read")
        if max(tensors, entries) > _MOST_ENTRIES:
            raise self.wrong(f"{tensors} tensors and {entries} entries are more than a model has")
        told: dict[str, Any] = {}
        for _ in range(entries):
            key = self.text(_MOST_NAME)
            if key in told:
                raise self.wrong(f"{plain(key)} stands there twice")
            told[key] = self.value(*self.numbers("<I"))
        infos = [self.info() for _ in range(tensors)]
        align = told.get("general.alignment", 32)
        if type(align) is not int or not 8 <= align <= 1 << 20 or align & (align - 1):
            raise self.wrong(f"an alignment of {plain(str(align))}")
        start = -(-self.handle.tell() // align) * align
        return GgufFile(self.path, told, dict(self.placed(infos, start, align)))

    def placed(self, infos: list[tuple[str, tuple[int, ...], int, int]], start: int, align: int) -> Iterator[Any]:
        end, seen = start, set()
        # one that another lies in would make a small file a large model
        for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
            numbers, size = self.sizes.get(kind, (0, 0))
            if not numbers:
                raise self.wrong(f"{plain(name)}: its quantisation, number {kind}, is not known")
            if shape[-1] % numbers:
                raise self.wrong(f"{plain(name)}: rows of {shape[-1]} numbers are not whole blocks of {numbers}")
            tensor = Packed(name, kind, shape, start + offset, numbers, size)
            if name in seen:
                raise self.wrong(f"{plain(name)} stands there twice")
            if offset % align or tensor.begin < end or tensor.begin + tensor.bytes > self.size:
                raise self.wrong(f"{plain(name)}: its {tensor.bytes} bytes from {tensor.begin} on are not its own")
            end = tensor.begin + tensor.bytes
            seen.add(name)
            yield name, tensor

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text(_MOST_NAME)
        (dimensions,) = self.numbers("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.wrong(f"{plain(name)} has {dimensions} dimensions")
        shape = self.numbers(f"<{dimensions}Q")[::-1]
        if not all(0 < length < 2**40 for length in shape):
            raise self.wrong(f"{plain(name)}: a shape of {shape}")
        kind, offset = self.numbers("<IQ")
        return name, shape, kind, offset

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self.text(_MOST_TEXT)
        if kind != _ARRAY:
            raise self.wrong(f"a value of the unknown type {kind}")
        each, count = self.numbers("<IQ")
        if each in _NUMBERS:
            self.skip(count * struct.calcsize(_NUMBERS[each]))
        elif each == _STRING:
            if count > self.left:
                raise self.wrong(f"an array of {count} texts")
            for _ in range(count):
                self.skip(*self.numbers("<Q"))
        else:
            raise self.wrong(f"an array of the type {each}")
        return count

    @property
    def left(self) -> int:
        return self.size - self.handle.tell()

    def skip(self, length: int) -> None:
        if length > self.left:
            raise self.wrong("ends within its header")
        self.handle.seek(length, os.SEEK_CUR)

    def numbers(self, form: str) -> tuple[Any, ...]:
        data = self.handle.read(struct.calcsize(form))
        if len(data) != struct.calcsize(form):
            raise self.wrong("ends within its header")
        return struct.unpack(form, data)

    def text(self, most: int) -> str:
        (length,) = self.numbers("<Q")
        if length > min(most, self.left):
            raise self.wrong(f"a text of {length} bytes")
        try:
            return self.handle.read(length).decode()
        except UnicodeDecodeError:
            raise self.wrong("a text that is not UTF-8") from None

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.path}: {plain(what)}")
