"""JSON values of a text file, one at a time, whatever the size of the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from shards.errors import BadInput
from shards.files import refuse_constant
from shards.sample import MAX_JSON_BYTES

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


class JsonStream:
    """Takes values, keys and punctuation in their order; one value and one block are held at most.

    BadInput when the text is not JSON, or a value longer than MAX_JSON_BYTES characters.
    """

    def __init__(self, handle: IO[str], path: Path) -> None:
        self.handle, self.path = handle, path
        self._decoder = json.JSONDecoder(parse_constant=refuse_constant)
        self._buffer, self._at = "", 0

    def values(self) -> Iterator[Any]:
        """Take an array: its values."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        number = 0
        while True:
            number += 1
            yield self.value(f"row {number}")
            if self._take(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """Take an object: the names of its fields; the caller takes the value after each."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            key = self.value("a key")
            if not isinstance(key, str):
                raise BadInput(f"{self.path}: not valid JSON (a key that is no text)")
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def end(self) -> None:
        """BadInput unless nothing follows."""
        if self.peek():
            raise BadInput(f"{self.path}: not valid JSON (something follows its end)")

    def skip(self, what: str) -> None:
        """Take a value that nobody wants; an array may be of any size."""
        if self.peek() == "[":
            for _ in self.values():
                pass
        else:
            self.value(what)

    def peek(self) -> str:
        """The next character that is no space, not taken; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in _SPACE:
                    return self._buffer[self._at]
                self._at += 1
            if not self._fill():
                return ""

    def value(self, what: str) -> Any:
        """Take one whole value; `what` names it in the message."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                raise BadInput(
                    f"{self.path}: {what} is not valid JSON of at most {MAX_JSON_BYTES} characters ({error.msg})"
                ) from error
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{self.path}: {what} is not valid JSON ({error})") from error
            if not self._whole(value, end) and self._more():
                continue
            if end - self._at > MAX_JSON_BYTES:
                raise BadInput(f"{self.path}: {what} is longer than {MAX_JSON_BYTES} characters")
            self._at = end
            return value

    def _whole(self, value: Any, end: int) -> bool:
        """Whether the value ends there; a number may go on in the next block, as 1 does in 1 | e5 or in 1e | 5."""
        return isinstance(value, str | list | dict) or self._buffer[end : end + 1] in tuple(_SPACE + ",]}")

    def _take(self, wanted: str) -> str:
        """Take one of the characters `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            what = repr(found) if found else "the end of the file"
            raise BadInput(
                f"{self.path}: not valid JSON ({what} where one of {wanted!r} is wanted); is the file whole?"
            )
        self._at += 1
        return found

    def _more(self) -> bool:
        """Read one more block behind a value that is not whole; false when it is too long or the file ends."""
        rest = len(self._buffer) - self._at
        # a value over one block is parsed again from its start each time: read what it may take at once
        return rest <= MAX_JSON_BYTES and self._fill(_CHUNK if rest < _CHUNK else MAX_JSON_BYTES)

    def _fill(self, size: int | None = None) -> bool:
        block = self.handle.read(size or _CHUNK)
        if block:
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        return bool(block)
