"""Files that others made, of questions, answers and predictions: JSON, JSON lines, TSV, XLSX. All of it is hostile."""

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.errors import BadInput, plain
from shards.files import check_plain_file

# the official VQAv2 annotations of train are 400 MB
_MOST_BYTES = 2 << 30
# MMBench's tables hold images as base64
_MOST_CELL = 64 << 20
# how many ids a message names, and how much of each
_NAMED, _ID = 3, 60

Placed = tuple[str, dict[str, Any]]


def first_ids(ids: Iterable[str]) -> str:
    """The first of some ids for a message: in one line, without what would steer a terminal, long ones cut."""
    return ", ".join(plain(each, _ID) for each in itertools.islice(ids, _NAMED))


def check_same_ids(where: str, given: Collection[str], wanted: Collection[str]) -> None:
    """BadInput, naming the first ids on either side, unless both are the same set."""
    missing, strange = [i for i in wanted if i not in given], [i for i in given if i not in wanted]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(wanted)} ids have no prediction, first {first_ids(missing)}")
    if strange:
        problems.append(f"{len(strange)} of {len(given)} ids are no questions of this set, first {first_ids(strange)}")
    if problems:
        raise BadInput(f"{where}: {'; '.join(problems)}")


def head(path: Path, size: int) -> bytes:
    """The first bytes, at most so many; BadInput where it is no plain file, or cannot be read."""
    check_plain_file(path)
    try:
        with open(path, "rb") as handle:
            # a read of `size` alone would take that much memory for the smallest file
            return handle.read(min(os.fstat(handle.fileno()).st_size, size))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """BadInput where it cannot be read, is not UTF-8, or is too large."""
    content = head(path, _MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise BadInput(f"{path}: larger than {_MOST_BYTES >> 30} GiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 ({error})") from None


def json_file(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from None


def objects(path: Path, content: Any) -> Iterator[Placed]:
    """(place, object) of a list of objects that stands in `path`."""
    if not isinstance(content, list):
        raise BadInput(f"{path}: a list of objects is wanted, not {type(content).__name__}")
    for number, each in enumerate(content):
        yield _object(f"{path}: entry {number}", each)


def json_lines(path: Path) -> Iterator[Placed]:
    """(place, object) of each line that is not empty."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}:{number}: not valid JSON ({error})") from None
            if isinstance(content, list):
                raise BadInput(f"{path}:{number}: an object on each line is wanted, not a JSON list")
            yield _object(f"{path}:{number}", content)


def table(path: Path) -> Iterator[Placed]:
    """(place, row) of a .tsv or .xlsx file, cells as texts, empty ones as ""; the first row names the columns."""
    check_plain_file(path)
    if path.suffix == ".xlsx":
        # openpyxl is not always there
        from vlm.eval.workbook import xlsx

        return xlsx(path)
    if path.suffix == ".tsv":
        return _tsv(path)
    raise BadInput(f"{path}: a .tsv or .xlsx file is wanted, or for answers JSON lines in a .jsonl file")


def _tsv(path: Path) -> Iterator[Placed]:
    csv.field_size_limit(_MOST_CELL)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if len(names) == 1:
            raise BadInput(f"{path}: one column, {names[0]!r:.50}; a tab between columns is wanted")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise BadInput(f"{path}: two columns are named {twice!r:.50}")
        for row in reader:
            if None in row:
                raise BadInput(f"{path}:{reader.line_num}: more cells than the first line names")
            yield f"{path}:{reader.line_num}", {name: cell or "" for name, cell in row.items()}
    except csv.Error as error:
        raise BadInput(f"{path}:{reader.line_num}: not a table ({error})") from None


def _object(place: str, content: Any) -> Placed:
    if not isinstance(content, dict):
        raise BadInput(f"{place}: an object is wanted, not {type(content).__name__}")
    return place, content


def unwanted(fields: Mapping[str, Any], name: str) -> str:
    """What a message says stands where something else is wanted."""
    if name not in fields:
        return "but it is missing"
    return "not null" if fields[name] is None else f"not {fields[name]!r:.50}"


def text(placed: Placed, name: str) -> str:
    """A text field; BadInput where it is missing or something else."""
    place, fields = placed
    if not isinstance(fields.get(name), str):
        raise BadInput(f"{place}: field {name!r}: a text is wanted, {unwanted(fields, name)}")
    return str(fields[name])


def optional_text(placed: Placed, name: str, default: str) -> str:
    """A text field, the default where it is missing or null."""
    return default if placed[1].get(name) is None else text(placed, name)


def identity(placed: Placed, name: str) -> str:
    """An id, which files write as a text or as a whole number."""
    place, fields = placed
    value = fields.get(name)
    if isinstance(value, str) and value.strip():
        return value
    if type(value) is int:
        return str(value)
    raise BadInput(f"{place}: field {name!r}: an id is wanted, {unwanted(fields, name)}")


def by_id(path: Path, rows: Iterable[Placed], ident: Callable[[Placed], str]) -> dict[str, Placed]:
    """Rows by their id; BadInput, naming the first ones, where one comes twice, or where there is no row."""
    found: dict[str, Placed] = {}
    twice: dict[str, None] = {}
    for placed in rows:
        name = ident(placed)
        if name in found:
            twice[name] = None
        found[name] = placed
    if twice:
        raise BadInput(f"{path}: {len(twice)} ids occur more than once, first {first_ids(twice)}")
    if not found:
        raise BadInput(f"{path}: holds no rows")
    return found
