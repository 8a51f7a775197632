"""One tar shard: written the same way every time, its members read by offset and never extracted."""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.errors import BadInput
from shards.files import parse_json, sha256_file, sync_folder, temporary_name, write_json
from shards.images import check_image
from shards.index import IndexEntry, ShardIndex
from shards.info import FileInfo, ShardInfo
from shards.sample import MAX_JSON_BYTES, Sample

BLOCK = tarfile.BLOCKSIZE

PositionalRead = Callable[[int, int], bytes]


class ShardWriter:
    """Writes `NAME-000000.tar` and its `.index.json`; neither exists under its name before `finish`."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._tar, self._index = folder / f"{stem}.tar", folder / f"{stem}.index.json"
        self._temporary = temporary_name(self._tar)
        self._handle = open(self._temporary, "xb")  # noqa: SIM115  closed by __exit__
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._entries: list[IndexEntry] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()
        self._temporary.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, sample: Sample) -> None:
        """Append one sample; BadInput, naming its key, when its image or the size of its JSON is bad."""
        data = json.dumps(sample.to_json(), ensure_ascii=False, allow_nan=False).encode("utf-8")
        if len(data) > MAX_JSON_BYTES:
            raise BadInput(f"sample {sample.key!r}: its JSON takes more than {MAX_JSON_BYTES} bytes; split it")
        members: dict[str, tuple[int, int]] = {}
        size = image_size(sample)
        if sample.image is not None and sample.image_ext is not None:
            members[sample.image_ext] = self._member(f"{sample.key}.{sample.image_ext}", sample.image)
        members["json"] = self._member(f"{sample.key}.json", data)
        self._entries.append(IndexEntry(sample.key, members, size, len(sample.questions)))

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        header = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and mode is 0644 by default
        header.size = len(data)
        self._write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        offset = self._bytes
        self._write(data + b"\0" * (-len(data) % BLOCK))
        return offset, len(data)

    def _write(self, data: bytes) -> None:
        self._handle.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def finish(self) -> ShardInfo:
        """End the tar, give both files their names, return their digests."""
        end = 2 * BLOCK
        self._write(b"\0" * (end + -(self._bytes + end) % tarfile.RECORDSIZE))
        self._handle.flush()
        os.fsync(self._handle.fileno())
        os.replace(self._temporary, self._tar)
        sync_folder(self._tar.parent)
        tar = FileInfo(self._tar.name, self._bytes, self._digest.hexdigest())
        write_json(self._index, ShardIndex(tar.file, tar.bytes, tar.sha256, tuple(self._entries)).to_json())
        index = FileInfo(self._index.name, self._index.stat().st_size, sha256_file(self._index))
        return ShardInfo(tar, len(self._entries), index)


def image_size(sample: Sample) -> tuple[int, int] | None:
    """(width, height) after a full decode; BadInput, naming the key, when it fails or the extension lies."""
    if sample.image is None:
        return None
    try:
        ext, width, height = check_image(sample.image)
    except BadInput as error:
        raise BadInput(f"sample {sample.key!r}: {error}") from error
    if ext != sample.image_ext:
        raise BadInput(f"sample {sample.key!r}: the image is a {ext} and is named .{sample.image_ext}")
    return width, height


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
