"""Tables in XLSX workbooks that others made. A small file can unpack to gigabytes, so all is capped."""

import itertools
import lzma
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from shards.errors import BadInput
from shards.extras import require
from shards.files import check_plain_file

# of the file, and of what it holds unpacked; the largest table of answers has 20,000 rows, and a tenth of this
_MOST_BYTES = 128 << 20
_MOST_ROWS, _MOST_COLUMNS = 1 << 17, 256
# a spreadsheet program's own limit
_MOST_CELL = 32_767
# what zipfile, the decompressors, the XML parsers and openpyxl raise where a file is not as they expect it
_BROKEN = (BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, SyntaxError, ValueError, ArithmeticError,
           LookupError, TypeError, AttributeError, RuntimeError)  # fmt: skip


def xlsx(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of the first sheet, cells as texts, empty ones as ""; its first row names the columns.

    Columns without a name are left out. BadInput for what is no workbook, for one that is too large, and for a formula
    whose value is not in the file.
    """
    _check_size(path)
    # a formula's value, and then the formula
    with _sheet(path, data_only=True) as (values, title), _sheet(path, data_only=False) as (formulas, _):
        names: list[str] = []
        for number, pair in enumerate(zip(_rows(path, values), _rows(path, formulas), strict=True), 1):
            place = f"{path}: {title}, row {number}"
            texts = _texts(place, number, *pair)
            if not any(texts):
                continue
            if names:
                cells = itertools.zip_longest(names, texts[: len(names)], fillvalue="")
                yield place, {name: text for name, text in cells if name}
            elif twice := next((name for name in texts if name and texts.count(name) > 1), None):
                raise BadInput(f"{place}: two columns are named {twice!r:.50}")
            else:
                names = texts
        if not names:
            raise BadInput(f"{path}: {title} is empty; the table has to be in the first sheet")


def _check_size(path: Path) -> None:
    check_plain_file(path)
    with _reading(path), ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if max(unpacked, path.stat().st_size) > _MOST_BYTES:
        raise BadInput(f"{path}: larger than {_MOST_BYTES >> 20} MiB unpacked; save the table as .tsv")


@contextmanager
def _sheet(path: Path, *, data_only: bool) -> Iterator[tuple[Iterator[Sequence[Any]], str]]:
    """Rows of cells of the first sheet, and its name."""
    require("openpyxl", "eval", f"{path}: reading it")
    from openpyxl import load_workbook  # type: ignore[import-untyped]

    # of what it does not support, such as the menus of a cell
    warnings.filterwarnings("ignore", module="openpyxl")
    with _reading(path):
        book = load_workbook(path, read_only=True, data_only=data_only)
        sheet = book.worksheets[0]
        # some writers leave it at A1, and cells outside of it would be lost
        sheet.reset_dimensions()
        rows = sheet.iter_rows(values_only=True)
    try:
        yield rows, f"sheet {sheet.title!r:.50}"
    finally:
        book.close()


def _rows(path: Path, rows: Iterator[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    while True:
        try:
            cells = next(rows, None)
        except _BROKEN as error:
            raise _broken(path, error) from None
        if cells is None:
            return
        yield cells


# only around calls of zipfile and openpyxl: a fault of our own keeps its traceback
@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise _broken(path, error) from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None


def _broken(path: Path, error: Exception) -> BadInput:
    return BadInput(f"{path}: not a workbook ({type(error).__name__}: {error})")


def _texts(place: str, number: int, cells: Sequence[Any], formulas: Sequence[Any]) -> list[str]:
    if number > _MOST_ROWS:
        raise BadInput(f"{place}: more than {_MOST_ROWS} rows; save the table as .tsv")
    if len(cells) > _MOST_COLUMNS:
        raise BadInput(f"{place}: a cell beyond column {_MOST_COLUMNS}; delete what stands there")
    texts = ["" if cell is None else str(cell) for cell in cells]
    if any(len(text) > _MOST_CELL for text in texts):
        raise BadInput(f"{place}: a cell of more than {_MOST_CELL} characters; save the table as .tsv")
    for column, (cell, formula) in enumerate(zip(cells, formulas, strict=True), 1):
        if cell is None and formula is not None:
            what = "a formula whose value is not in the file; save it in a spreadsheet program, or as .tsv"
            raise BadInput(f"{place}, column {column}: {what}")
    return texts
