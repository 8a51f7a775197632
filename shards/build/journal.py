"""The journal of a build: which shards stand, and what of their samples later ones must be compared with."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.build.prepare import Digest, Prepared, Rejected
from shards.errors import BadInput
from shards.files import sha256_file
from shards.info import FileInfo, ShardInfo

JOURNAL = ".progress.sqlite"
# SQLite undoes by it what a kill has cut short.
_ROLLBACK = f"{JOURNAL}-journal"

_SCHEMA = (
    "CREATE TABLE work (digest TEXT)",
    "CREATE TABLE shards (number INTEGER PRIMARY KEY, shard TEXT, tally TEXT)",
    "CREATE TABLE seen (digest BLOB PRIMARY KEY, first TEXT) WITHOUT ROWID",
    "CREATE TABLE rejected (row INTEGER PRIMARY KEY, place TEXT, kind TEXT, reason TEXT)",
    "CREATE TABLE duplicates (number INTEGER PRIMARY KEY, key TEXT, question TEXT, first TEXT)",
)
# No such table, a damaged file, no database at all.
_NOT_OURS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# So many digests are held before they go to the file.
_HELD = 20_000


@dataclass
class Tally:
    """Counts of a build so far; `rows` are those of the source that were looked at."""

    rows: int = 0
    samples: int = 0
    questions: int = 0
    images: int = 0
    rejected: int = 0
    duplicates: int = 0
    languages: list[str] = field(default_factory=list)


class Journal:
    """A SQLite file in the output folder, committed once a shard: a killed build goes on after the last whole one.

    Memory does not grow with the number of samples. What is added after the last `commit` is lost on `close`.
    """

    def __init__(self, folder: Path, work: str) -> None:
        """Open the journal; begin anew unless it is whole and of the same `work`, the digest of all that decides."""
        self.folder, self.path = folder, folder / JOURNAL
        self.shards: list[ShardInfo] = []
        self.tally = Tally()
        self._known: dict[Digest, str] = {}
        self._new: dict[Digest, str] = {}
        self._db = self._connect()
        if not self._load(work):
            self.discard()
            self._db = self._connect()
            self._begin(work)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=0, isolation_level=None)

    def _open(self) -> None:
        """Begin a transaction; who builds holds the folder alone, so the file need not be shared."""
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA cache_size = -8000")
        self._db.execute("BEGIN EXCLUSIVE")

    def _load(self, work: str) -> bool:
        """Take over what the journal says; false when it is of other work or its shards do not stand."""
        try:
            self._open()
            if self._db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return False
            if self._db.execute("SELECT digest FROM work").fetchall() != [(work,)]:
                return False
            rows = self._db.execute("SELECT shard, tally FROM shards ORDER BY number").fetchall()
            shards = [ShardInfo.from_json(json.loads(shard), str(self.path)) for shard, _ in rows]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _NOT_OURS:
                raise
            return False
        except (BadInput, ValueError):
            return False
        if not all(self._whole(file) for shard in shards for file in (shard.tar, shard.index)):
            return False
        self.shards = shards
        self.tally = Tally(**json.loads(rows[-1][1])) if rows else Tally()
        return True

    def _begin(self, work: str) -> None:
        self._open()
        for table in _SCHEMA:
            self._db.execute(table)
        self._db.execute("INSERT INTO work VALUES (?)", (work,))

    def _whole(self, file: FileInfo) -> bool:
        path = self.folder / file.file
        return path.is_file() and path.stat().st_size == file.bytes and sha256_file(path) == file.sha256

    @property
    def files(self) -> set[str]:
        """Names of the journal's own files, and of the shards and indexes that stand."""
        return {JOURNAL, _ROLLBACK, *(file.file for shard in self.shards for file in (shard.tar, shard.index))}

    def look_up(self, digests: Iterable[Digest]) -> None:
        """Make `first` know these digests: asking for many at once is faster."""
        wanted = list(digests)
        self._known = {}
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            self._known.update(self._db.execute(f"SELECT digest, first FROM seen WHERE digest IN ({marks})", part))

    def first(self, digest: Digest) -> str | None:
        """Where a digest was seen first; None for a new one. It must have been looked up."""
        return self._new.get(digest, self._known.get(digest))

    def add(self, row: Prepared) -> None:
        """Count a row that became a sample, remember what is new in it, record what others asked before."""
        tally, key = self.tally, row.packed.key
        tally.rows += 1
        tally.samples += 1
        tally.questions += row.packed.questions
        tally.images += row.packed.image_size is not None
        if row.lang not in tally.languages:
            tally.languages.append(row.lang)
        self._new[row.key] = row.place
        self._new.update(dict.fromkeys(row.question_ids, key))
        for digest, question in row.asked:
            first = self.first(digest)
            if first is None:
                self._new[digest] = key
            else:
                tally.duplicates += 1
                values = (key, question, first)
                self._db.execute("INSERT INTO duplicates (key, question, first) VALUES (?, ?, ?)", values)
        if len(self._new) > _HELD:
            self._insert()

    def reject(self, row: Rejected) -> None:
        """Count and record a row that became no sample."""
        self.tally.rows += 1
        self.tally.rejected += 1
        values = (self.tally.rows, row.place, row.kind, row.reason)
        self._db.execute("INSERT INTO rejected VALUES (?, ?, ?, ?)", values)

    def _insert(self) -> None:
        self._db.executemany("INSERT INTO seen VALUES (?, ?)", sorted(self._new.items()))
        self._known |= self._new
        self._new = {}

    def commit(self, shard: ShardInfo) -> None:
        """Everything so far lasts; the files of `shard` must stand."""
        self.shards.append(shard)
        self._insert()
        values = (len(self.shards), json.dumps(shard.to_json()), json.dumps(asdict(self.tally)))
        self._db.execute("INSERT INTO shards VALUES (?, ?, ?)", values)
        self._db.execute("COMMIT")
        self._db.execute("BEGIN EXCLUSIVE")

    def rejected(self) -> Iterator[dict[str, str]]:
        """The lines of rejected.jsonl, in the order of the source."""
        rows = self._db.execute("SELECT place, kind, reason FROM rejected ORDER BY row")
        return (Rejected(*row).to_json() for row in rows)

    def rejected_by_kind(self) -> list[tuple[str, int, str, str]]:
        """(kind, count, place and reason of the first) of each kind, in the order of the source."""
        # SQLite takes the bare columns from the row of the least `row`.
        kinds = "SELECT kind, COUNT(*), place, reason, MIN(row) FROM rejected GROUP BY kind ORDER BY MIN(row)"
        return [row[:4] for row in self._db.execute(kinds)]

    def duplicates(self) -> Iterator[dict[str, Any]]:
        """The lines of duplicates.jsonl, in the order of the source."""
        rows = self._db.execute("SELECT key, question, first FROM duplicates ORDER BY number")
        return ({"key": key, "question": question, "first": first} for key, question, first in rows)

    def close(self) -> None:
        """Let go of the file; it stays for the next build."""
        self._db.close()

    def discard(self) -> None:
        """Remove the journal. The file goes first: what SQLite keeps beside it would not fit another one."""
        self._db.close()
        for name in (JOURNAL, _ROLLBACK):
            (self.folder / name).unlink(missing_ok=True)
