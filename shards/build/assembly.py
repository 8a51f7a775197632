"""Prepared rows, in their order, to shards and the journal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.build.journal import Journal
from shards.build.prepare import Prepared, Rejected
from shards.errors import BadInput
from shards.tar import ShardWriter, tar_bytes

# While more rows are to come, so many are taken to follow: a wrong --images ends soon, bad rows at the start do not.
_ROWS_TO_COME = 100_000
# dataset.json lists them all, and is read whole.
MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Limits:
    """When a shard is full, and when the source is too bad."""

    samples: int
    "in a shard"
    bytes: int
    "of a tar, unless one sample alone takes more"
    rejected: float
    "share of the rows, 0 to 1"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadInput(f"--samples-per-shard is {self.samples}; at least 1 is wanted")


class TooManyRejected(BadInput):
    """More rows are rejected than allowed."""


class Assembly:
    """Writes the shards `NAME-000000` and so on in `out`, after those that stand by the journal."""

    def __init__(self, journal: Journal, out: Path, name: str, limits: Limits) -> None:
        self.journal, self.out, self.name, self.limits = journal, out, name, limits
        self._writer: ShardWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.drop()

    def take(self, rows: Sequence[Prepared | Rejected]) -> None:
        """The next rows of the source; TooManyRejected when so many are rejected by now."""
        self.journal.look_up(digest for row in rows if isinstance(row, Prepared) for digest in row.digests())
        for row in rows:
            rejected = row if isinstance(row, Rejected) else self._twin(row)
            if rejected is not None:
                self.journal.reject(rejected)
                self._judge(max(self.journal.tally.rows, _ROWS_TO_COME), "of the first")
            elif isinstance(row, Prepared):
                self._add(row)

    def finish(self) -> None:
        """End the last shard; TooManyRejected when so many rows are, BadInput when all are."""
        tally = self.journal.tally
        self._judge(tally.rows)
        if not tally.samples:
            raise BadInput(f"none of {tally.rows} rows became a sample: {self._kinds()}")
        if self._writer is not None:
            self._close(self._writer)

    def _twin(self, row: Prepared) -> Rejected | None:
        """The rejection of a row whose key, or one of whose question ids, is taken."""
        first = self.journal.first(row.key)
        if first is not None:
            return Rejected(row.place, "duplicate", f"the same key {row.packed.key!r} as {first}")
        for digest, question_id in row.question_ids.items():
            first = self.journal.first(digest)
            if first is not None:
                return Rejected(
                    row.place, "duplicate", f"the same question_id {question_id!r:.100} as sample {first!r}"
                )
        return None

    def _add(self, row: Prepared) -> None:
        if self._writer is not None and not self._fits(self._writer, len(row.packed.data)):
            self._close(self._writer)
        if self._writer is None:
            number = len(self.journal.shards)
            if number == MAX_SHARDS:
                raise BadInput(f"more than {number} shards; set a larger --samples-per-shard or --bytes-per-shard")
            self._writer = ShardWriter(self.out, f"{self.name}-{number:06d}")
        self._writer.append(row.packed)
        self.journal.add(row)

    def _fits(self, writer: ShardWriter, size: int) -> bool:
        return len(writer) < self.limits.samples and tar_bytes(writer.bytes + size) <= self.limits.bytes

    def _close(self, writer: ShardWriter) -> None:
        # The shard stands under its name before the journal says so.
        shard = writer.finish()
        self._writer = None
        self.journal.commit(shard)

    def _judge(self, rows: int, of: str = "of") -> None:
        tally = self.journal.tally
        if tally.rejected > self.limits.rejected * rows:
            allowed = f"{self.limits.rejected:.6g} of them are allowed (--max-rejected)"
            raise TooManyRejected(
                f"{tally.rejected} {of} {tally.rows} rows are rejected and {allowed}: {self._kinds()}"
            )

    def _kinds(self) -> str:
        kinds = self.journal.rejected_by_kind()
        return "; ".join(f"{count} {kind}, first {place}: {reason}" for kind, count, place, reason in kinds)
