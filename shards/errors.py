"""The one exception that stands for a mistake in what the user gave."""

from typing import Literal

Kind = Literal["schema", "text", "image-missing", "image", "limit", "duplicate"]


class BadInput(Exception):
    """Bad input or configuration; the message is one clear line with file, key and remedy.

    `kind` says what is wrong with a sample, for the counts of rejected ones.
    """

    def __init__(self, message: str, kind: Kind = "schema") -> None:
        super().__init__(message)
        self.kind = kind
