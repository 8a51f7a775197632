"""The full check of one shard, in one pass over its tar."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.dataset import check_size, read_index
from shards.errors import BadInput
from shards.index import IndexEntry, ShardIndex
from shards.info import DATASET_FILE, ShardInfo
from shards.tar import BLOCK, image_size, read_sample, walk_members

# So many bad samples of a shard are named; the others are counted.
_MOST_NAMED = 100

CHANGED = f"digest differs from {DATASET_FILE}: bytes have changed since it was built"

_READ = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one file of the folder."""

    file: str
    what: str


def problem_of(file: str, error: BadInput | OSError, folder: Path = Path()) -> Problem:
    """The error as a problem of `file`, whose name is not said twice."""
    if isinstance(error, OSError):
        return Problem(file, f"cannot be read ({error.strerror})")
    return Problem(file, str(error).removeprefix(f"{folder / file}: "))


@dataclass(slots=True)
class ShardReport:
    """What the check of one shard found; `keys` and `question_ids` are 8-byte digests in stored order."""

    problems: list[Problem] = field(default_factory=list)
    samples: int = 0
    questions: int = 0
    images: int = 0
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    question_ids: "array[int]" = field(default_factory=lambda: array("Q"))


def short_digest(text: str) -> int:
    """64 bits of a text's digest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def check_shard(
    folder: Path, shard: ShardInfo, decode: bool = False, progress: Callable[[int], None] | None = None
) -> ShardReport:
    """Check the tar and the index of one shard. `progress` gets the number of its samples checked."""
    report = ShardReport()
    index = None
    try:
        index = read_index(folder, shard)
    except (BadInput, OSError) as error:
        report.problems.append(problem_of(shard.index.file, error, folder))
    try:
        check_size(folder, shard.tar)
        with open(folder / shard.tar.file, "rb", buffering=0) as handle:
            tape = _Tape(handle.fileno())
            if index is not None:
                _TarCheck(tape, shard.tar.file, decode, report).run(index, progress)
            if tape.sha256() != shard.tar.sha256:
                report.problems.insert(0, Problem(shard.tar.file, CHANGED))
    except (BadInput, OSError) as error:
        report.problems.append(problem_of(shard.tar.file, error, folder))
    return report


class _Tape:
    """A tar read once from start to end and hashed on the way; `read` is a PositionalRead of it."""

    def __init__(self, fd: int) -> None:
        self._fd, self._digest = fd, hashlib.sha256()
        self._start, self._window = 0, b""  # the bytes of the file from `_start` on that are kept

    def read(self, size: int, offset: int) -> bytes:
        """Going forward costs one read of the file; what lies before `offset` is forgotten."""
        while offset + size > self._start + len(self._window) and self._forward(offset, size):
            pass
        if offset < self._start:
            return os.pread(self._fd, size, offset)
        return self._window[offset - self._start : offset - self._start + size]

    def _forward(self, keep: int, size: int = 0) -> bool:
        """Read some more, `size` bytes at least, and forget what lies before `keep`; false at the end of the file."""
        end = self._start + len(self._window)
        block = os.pread(self._fd, max(size, _READ), end)
        self._digest.update(block)
        cut = min(max(keep - self._start, 0), len(self._window))
        self._start, self._window = self._start + cut, self._window[cut:] + block
        return bool(block)

    def blocks(self, offset: int) -> Iterator[bytes]:
        """All bytes from `offset` to the end of the file."""
        while block := self.read(_READ, offset):
            yield block
            offset += len(block)

    def sha256(self) -> str:
        """Digest of the whole file, read to its end."""
        while self._forward(self._start + len(self._window)):
            pass
        return self._digest.hexdigest()


class _TarCheck:
    """The samples of a tar against its index; what is wrong goes to the report."""

    def __init__(self, tape: _Tape, tar: str, decode: bool, report: ShardReport) -> None:
        self.tape, self.tar, self.decode, self.report = tape, tar, decode, report
        self._members = walk_members(tape.read, tar)
        self._in_step, self._bad = True, 0

    def run(self, index: ShardIndex, progress: Callable[[int], None] | None) -> None:
        """Read every sample in stored order, and beside it the members that a plain tar reader sees."""
        end = 0
        for entry in index.samples:
            try:
                self._sample(entry)
            except BadInput as error:
                self._add(error)
            for ext, (offset, size) in entry.members.items():
                self._next_is((f"{entry.key}.{ext}", offset, size))
                end = max(end, offset + size)
            self.report.samples += 1
            if progress:
                progress(self.report.samples)
        self._next_is(None)
        if self._in_step and any(block.strip(b"\0") for block in self.tape.blocks(end + -end % BLOCK)):
            self._add(BadInput("bytes after its end: something was appended"))
        if self._bad > _MOST_NAMED:
            self.report.problems.append(Problem(self.tar, f"and {self._bad - _MOST_NAMED} more problems"))

    def _sample(self, entry: IndexEntry) -> None:
        self.report.keys.append(short_digest(entry.key))
        sample = read_sample(self.tape.read, self.tar, entry)
        self.report.questions += len(sample.questions)
        self.report.images += sample.image is not None
        self.report.question_ids.extend(short_digest(question.question_id) for question in sample.questions)
        if image_size(sample, self.decode) != entry.image_size:
            raise BadInput(f"sample {entry.key!r}: the image is not of the size {entry.image_size} in the index")
        if len(sample.questions) != entry.questions:
            raise BadInput(f"sample {entry.key!r}: {len(sample.questions)} questions, in the index {entry.questions}")

    def _next_is(self, wanted: tuple[str, int, int] | None) -> None:
        """The next member, None for the end, is `wanted`; once it was another one, no more are compared."""
        if not self._in_step:
            return
        try:
            found = next(self._members, None)
            if found != wanted:
                raise BadInput(f"its members are not those of its index: {_member(found)} instead of {_member(wanted)}")
        except BadInput as error:
            self._in_step = False
            self._add(error)

    def _add(self, error: BadInput) -> None:
        self._bad += 1
        if self._bad <= _MOST_NAMED:
            self.report.problems.append(problem_of(self.tar, error))


def _member(member: tuple[str, int, int] | None) -> str:
    return "the end" if member is None else f"{member[0]!r:.150} of {member[2]} bytes at byte {member[1]}"
