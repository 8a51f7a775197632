"""Rows of the file formats that raw sets come in, one at a time, whatever the size of the file.

A row is a function: it returns the parsed value, or raises BadInput if that row alone cannot be read. What spoils a
whole file is raised by the iterator itself.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from shards.errors import BadInput
from shards.files import check_plain_file, parse_json
from shards.images import MAX_IMAGE_BYTES
from shards.readers.json_stream import JsonStream
from shards.readers.tables import Row, parquet_rows
from shards.sample import MAX_JSON_BYTES

_BLOCK = 1 << 20
_MAX_TSV_LINE = 2 * MAX_IMAGE_BYTES  # images stand in it as base64


def any_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Row]]:
    """(place, row) of a JSON array, JSON lines or Parquet, as the file's first bytes say; a folder is of Parquet."""
    if path.is_dir() or _first_bytes(path, 4) == b"PAR1":
        return parquet_rows(path, columns)
    return json_rows(path)


def json_rows(path: Path, under: str | None = None) -> Iterator[tuple[str, Row]]:
    """(place, row) of a JSON array, of the array in field `under` of a JSON object, or of JSON lines."""
    first = _first_character(path)
    if first == b"[":
        with _open_text(path) as handle:
            stream = JsonStream(handle, path)
            yield from _numbered(path, stream.values())
            stream.end()
    elif first == b"{" and under is not None:
        with _open_text(path) as handle:
            yield from _rows_under(JsonStream(handle, path), under)
    elif first:
        yield from _lines(path)


def json_items(path: Path) -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of a JSON object such as GQA's `{id: {...}}`."""
    with _open_text(path) as handle:
        stream = JsonStream(handle, path)
        for number, key in enumerate(stream.names(), 1):
            yield f"{path}: item {number}", key, stream.value(f"item {number}")
        stream.end()


def tsv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of a table with a header; a row is a dict of texts."""
    csv.field_size_limit(_MAX_TSV_LINE)
    with _open_text(path) as handle:
        try:
            table = csv.DictReader(_bounded_lines(handle, path), delimiter="\t", strict=True)
            names = table.fieldnames or ()
            if len(set(names)) != len(names):
                raise BadInput(f"{path}: two columns of one name in the header")
            for row in table:
                whole = None not in row and None not in row.values()
                call = partial(_same, row) if whole else partial(_refuse, "more or fewer cells than the header")
                yield f"{path}:{table.line_num}", call
        except csv.Error as error:
            raise BadInput(f"{path}: not a table ({error})") from error


def _same(value: Any) -> Any:
    return value


def _refuse(why: str) -> Any:
    raise BadInput(why)


def _refuse_length() -> Any:
    raise BadInput(f"a line longer than {MAX_JSON_BYTES} bytes", "limit")


def _numbered(path: Path, values: Iterator[Any]) -> Iterator[tuple[str, Row]]:
    return ((f"{path}: row {number}", partial(_same, value)) for number, value in enumerate(values, 1))


def _rows_under(stream: JsonStream, under: str) -> Iterator[tuple[str, Row]]:
    found = False
    for key in stream.names():
        if key == under and stream.peek() == "[":
            found = True
            yield from _numbered(stream.path, stream.values())
        else:
            stream.skip(f"the field {key!r:.50}")
    if not found:
        raise BadInput(f"{stream.path}: a list under {under!r} is wanted")
    stream.end()


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    with _open(path) as handle:
        number = 0
        while line := handle.readline(MAX_JSON_BYTES + 1):
            number += 1
            place = f"{path}:{number}"
            if len(line) > MAX_JSON_BYTES:
                while line and not line.endswith(b"\n"):
                    line = handle.readline(_BLOCK)
                yield place, _refuse_length
            elif line.strip():
                yield place, partial(parse_json, line, "the line")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    check_plain_file(path)
    try:
        with open(path, "rb") as handle:
            yield handle
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    check_plain_file(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            yield handle
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason})") from error


def _bounded_lines(handle: IO[str], path: Path) -> Iterator[str]:
    while line := handle.readline(_MAX_TSV_LINE + 1):
        if len(line) > _MAX_TSV_LINE:
            raise BadInput(f"{path}: a line longer than {_MAX_TSV_LINE} characters")
        yield line


def _first_bytes(path: Path, count: int) -> bytes:
    with _open(path) as handle:
        return handle.read(count)


def _first_character(path: Path) -> bytes:
    """The first byte that is no space, after a byte order mark; b"" in an empty file."""
    with _open(path) as handle:
        block = handle.read(_BLOCK).removeprefix(b"\xef\xbb\xbf")
        while block and not block.strip():
            block = handle.read(_BLOCK)
    return block.lstrip()[:1]
