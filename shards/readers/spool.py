"""Rows kept on disk by key, for sets that must be grouped or joined and do not fit into memory."""

import json
import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from shards.errors import BadInput

# Nothing of it outlives the process, so nothing is journalled or synced.
_SETTINGS = ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", "cache_size = -16000")


class Spool:
    """JSON values by key in a temporary SQLite file below TMPDIR; 16 MB of memory whatever their number.

    Any text is a key. Values of a key keep the order they were added in. Add all before the first look-up, which
    builds the index. To be used by one thread at a time. BadInput when TMPDIR is full.
    """

    def __init__(self) -> None:
        # A file without a name goes with the process, even one that is killed.
        # A generator that owns a spool may be closed by another thread than ran it.
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in _SETTINGS:
            self._rows.execute(f"PRAGMA {setting}")
        self._rows.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL)")
        self._rows.execute("BEGIN")
        self._indexed = False

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()

    def add(self, key: str, value: Any) -> None:
        """Append a JSON value to those of `key`."""
        # as ASCII JSON even a key of lone surrogates can be stored
        self._run("INSERT INTO rows (key, value) VALUES (?, ?)", json.dumps(key), json.dumps(value))

    def get(self, key: str) -> list[Any]:
        """The values of `key`; none when it was never added."""
        return self._values(json.dumps(key))

    def pop(self, key: str) -> list[Any]:
        """The values of `key`, which the spool then forgets."""
        values = self.get(key)
        if values:
            self._run("DELETE FROM rows WHERE key = ?", json.dumps(key))
        return values

    def groups(self) -> Iterator[tuple[str, list[Any]]]:
        """Every key with its values, in the order in which the keys were first added."""
        self._index()
        for (key,) in self._run("SELECT key FROM rows GROUP BY key ORDER BY MIN(n)"):
            yield json.loads(key), self._values(key)

    def _values(self, key: str) -> list[Any]:
        self._index()
        return [json.loads(value) for (value,) in self._run("SELECT value FROM rows WHERE key = ? ORDER BY n", key)]

    def _index(self) -> None:
        if not self._indexed:
            self._run("CREATE INDEX of_key ON rows (key)")
            self._indexed = True

    def _run(self, statement: str, *values: str) -> sqlite3.Cursor:
        try:
            return self._rows.execute(statement, values)
        except sqlite3.OperationalError as error:
            why = f"the folder of temporary files cannot hold the set's questions ({error})"
            raise BadInput(f"{why}; set TMPDIR to a larger disk") from error
