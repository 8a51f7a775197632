"""One tar shard: written the same way every time, its members read by offset and never extracted."""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.errors import BadInput
from shards.files import parse_json, temporary_name, write_atomic
from shards.images import check_image
from shards.index import IndexEntry, ShardIndex
from shards.info import FileInfo, ShardInfo, file_info
from shards.sample import MAX_JSON_BYTES, Sample

BLOCK = tarfile.BLOCKSIZE
_FLUSH_EVERY = 8 * 1024 * 1024

PositionalRead = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Packed:
    """A sample as it stands in a tar: `data` is its members with their headers and padding.

    `members` maps an extension to (offset in `data`, size) in bytes.
    """

    key: str
    data: bytes
    members: dict[str, tuple[int, int]]
    image_size: tuple[int, int] | None
    questions: int


def pack(sample: Sample, decode: bool = False) -> Packed:
    """The members of a sample; BadInput when its image (decoded to the end with `decode`) or its JSON is bad."""
    size = image_size(sample, decode)
    members = {} if sample.image is None else {str(sample.image_ext): sample.image}
    members["json"] = _json(sample)
    parts: list[bytes] = []
    places = {}
    end = 0
    for ext, content in members.items():
        header = tar_header(f"{sample.key}.{ext}", len(content))
        parts += (header, content, b"\0" * (-len(content) % BLOCK))
        places[ext] = end + len(header), len(content)
        end = places[ext][0] + -(-len(content) // BLOCK) * BLOCK
    return Packed(sample.key, b"".join(parts), places, size, len(sample.questions))


def image_size(sample: Sample, decode: bool = False) -> tuple[int, int] | None:
    """(width, height) of a checked image; BadInput, naming the key, when it is damaged or its extension lies."""
    if sample.image is None:
        return None
    try:
        ext, width, height = check_image(sample.image, decode)
    except BadInput as error:
        raise BadInput(f"sample {sample.key!r}: {error}", error.kind) from error
    if ext != sample.image_ext:
        raise BadInput(f"sample {sample.key!r}: the image is a {ext} and is named .{sample.image_ext}", "image")
    return width, height


def _json(sample: Sample) -> bytes:
    try:
        data = json.dumps(sample.to_json(), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"sample {sample.key!r}: it cannot be written as JSON ({error})") from error
    if len(data) > MAX_JSON_BYTES:
        raise BadInput(f"sample {sample.key!r}: its JSON takes more than {MAX_JSON_BYTES} bytes; split it", "limit")
    return data


# mtime, uid and gid are 0 and mode is 0644 by default
_BLANK = tarfile.TarInfo().tobuf(tarfile.GNU_FORMAT)


def tar_header(name: str, size: int) -> bytes:
    """The header that `tarfile` would write for a plain file of that ASCII name and size, in a tenth of its time."""
    if len(name) > tarfile.LENGTH_NAME:
        header = tarfile.TarInfo(name)
        header.size = size
        return header.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")
    block = bytearray(_BLANK)
    block[: len(name)] = name.encode("ascii")
    block[124:135] = b"%011o" % size
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def tar_bytes(members: int) -> int:
    """Bytes of a tar whose members take so many: two empty blocks end it, and the last record is filled."""
    end = members + 2 * BLOCK
    return end + -end % tarfile.RECORDSIZE


def _index_text(index: ShardIndex) -> str:
    """JSON with a sample a line."""
    obj = index.to_json()
    samples = ",\n".join(json.dumps(entry) for entry in obj.pop("samples"))
    return json.dumps(obj)[:-1] + f', "samples": [\n{samples}\n]}}\n'


class ShardWriter:
    """Writes `NAME-000000.tar` and its `.index.json`; neither exists under its name before `finish`."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._tar, self._index = folder / f"{stem}.tar", folder / f"{stem}.index.json"
        self._temporary = temporary_name(self._tar)
        self._handle = open(self._temporary, "xb")  # noqa: SIM115  closed by `drop`
        self._flusher = ThreadPoolExecutor(1)
        self._flush: Future[None] | None = None
        self._flush_at = _FLUSH_EVERY
        self._digest = hashlib.sha256()
        self._entries: list[IndexEntry] = []
        self.bytes = 0
        "of the members so far"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """Remove what is not finished."""
        self._flusher.shutdown()
        self._temporary.unlink(missing_ok=True)
        with suppress(OSError):  # on a full disk it tries to write the rest once more
            self._handle.close()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, sample: Sample) -> None:
        """Append one sample; BadInput, naming its key, when its image or the size of its JSON is bad."""
        self.append(pack(sample))

    def append(self, packed: Packed) -> None:
        """Append one sample that was checked already."""
        members = {ext: (self.bytes + offset, size) for ext, (offset, size) in packed.members.items()}
        self._entries.append(IndexEntry(packed.key, members, packed.image_size, packed.questions))
        self._write(packed.data)

    def _write(self, data: bytes) -> None:
        self._handle.write(data)
        self._digest.update(data)
        self.bytes += len(data)
        if self.bytes >= self._flush_at and (self._flush is None or self._flush.done()):
            self._await_flush()
            # The disk works while more samples are made, so that `finish` has little to wait for.
            self._flush = self._flusher.submit(os.fsync, self._handle.fileno())
            self._flush_at = self.bytes + _FLUSH_EVERY

    def _await_flush(self) -> None:
        if self._flush is not None:
            self._flush.result()  # the system tells an error of the disk once only

    def finish(self) -> ShardInfo:
        """End the tar, give both files their names, return their digests."""
        self._write(b"\0" * (tar_bytes(self.bytes) - self.bytes))
        self._handle.flush()
        self._await_flush()
        os.fsync(self._handle.fileno())
        self._flusher.shutdown()
        self._handle.close()
        os.replace(self._temporary, self._tar)
        tar = FileInfo(self._tar.name, self.bytes, self._digest.hexdigest())
        # The folder is synced after the index: that makes both names last.
        write_atomic(self._index, _index_text(ShardIndex(tar.file, tar.bytes, tar.sha256, tuple(self._entries))))
        return ShardInfo(tar, len(self._entries), file_info(self._index))


def reader_of(fd: int) -> PositionalRead:
    """`pread(size, offset)` on an open file."""
    return lambda size, offset: os.pread(fd, size, offset)


def read_sample(pread: PositionalRead, shard: str, entry: IndexEntry) -> Sample:
    """The sample of an index entry, with one read `pread(size, offset)`; BadInput names shard and key.

    The tar header before each member must carry the sample's name and size.
    """
    start = min(offset for offset, _ in entry.members.values()) - BLOCK
    stop = max(offset + size for offset, size in entry.members.values())
    data = pread(stop - start, start)
    parts = {}
    for ext, (offset, size) in entry.members.items():
        at = offset - start
        _check_header(data[at - BLOCK : at], f"{entry.key}.{ext}", size, shard)
        parts[ext] = data[at : at + size]
        if len(parts[ext]) != size:
            raise BadInput(f"{shard}: ends inside {entry.key}.{ext}; run `vlm shards verify`")
    image_ext = entry.image_ext
    obj = parse_json(parts["json"], f"{shard}: {entry.key}.json")
    try:
        return Sample.from_json(entry.key, obj, parts[image_ext] if image_ext else None, image_ext)
    except BadInput as error:
        raise BadInput(f"{shard}: {error}") from error


def walk_members(pread: PositionalRead, shard: str) -> Iterator[tuple[str, int, int]]:
    """(name, data offset, size) of every member, as a plain tar reader sees them; BadInput on anything unusual.

    Python's own walk is not used: it follows a negative size in circles (CVE-2025-8194).
    """
    at, long_name = 0, ""
    while (block := pread(BLOCK, at)) != b"\0" * BLOCK:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise BadInput(f"{shard}: the tar header at byte {at} is damaged ({error})") from error
        if header.size < 0:
            raise BadInput(f"{shard}: the tar header at byte {at} has a negative size")
        if header.type == tarfile.GNUTYPE_LONGNAME and header.size <= BLOCK:
            long_name = pread(header.size, at + BLOCK).rstrip(b"\0").decode("ascii", "replace")
        elif header.isreg():
            yield long_name or header.name, at + BLOCK, header.size
            long_name = ""
        else:
            raise BadInput(f"{shard}: the member at byte {at} is not a plain file")
        at += BLOCK + -(-header.size // BLOCK) * BLOCK


def _check_header(block: bytes, name: str, size: int, shard: str) -> None:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise BadInput(f"{shard}: the header of {name} is damaged ({error}); run `vlm shards verify`") from error
    # A name over 100 bytes is cut here: GNU tar keeps the whole of it in a member of its own.
    if header.name != name[:100] or header.size != size or not header.isreg():
        raise BadInput(f"{shard}: {header.name!r:.150} lies where the index has {name}; run `vlm shards verify`")
