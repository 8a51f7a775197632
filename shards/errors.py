"""The exceptions that end a command with one line: a mistake in what the user gave, a server that fails."""

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
