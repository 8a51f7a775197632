"""The exceptions that end a command with one line: a mistake in what the user gave, a server that fails."""

import difflib
from collections.abc import Collection
from typing import Literal

Kind = Literal["schema", "text", "image-missing", "image", "limit", "duplicate"]


class BadInput(Exception):
    """Bad input or configuration; the message is one clear line with file, key and remedy.

    `kind` says what is wrong with a sample, for the counts of rejected ones.
    """

    def __init__(self, message: str, kind: Kind = "schema") -> None:
        super().__init__(message)
        self.kind = kind


class ServerFault(Exception):
    """A server that we depend on failed in spite of all retries; the message is one clear line, what is done stays."""


def nearest(name: str, known: Collection[str]) -> str:
    """What a message about the unknown `name` goes on with."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else f"; known: {', '.join(known)}"


def plain(text: str, limit: int = 200) -> str:
    """`text` in one line of at most `limit` characters, without what would steer a terminal."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in text[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"
