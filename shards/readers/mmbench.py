"""MMBench and MMBench-ru: choices by letter, in TSV with base64 pictures or in Parquet.

The rows of the circular evaluation, whose options are rotated already, are taken as they stand.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.dialogue import Dialogues, Turn, as_object, text_field
from shards.readers.images import ImageFolder, from_base64, from_cell
from shards.readers.rows import Row, parquet_rows, tsv_rows
from shards.readers.spool import Spool
from shards.sample import Question, Sample, check_text, option_letter

_LETTERS = "ABCDE"
_CATEGORY2 = ("l2-category", "L2-category")  # lmms-lab's copies write it large
_LABELS = ("category", *_CATEGORY2, "source", "split")
_COLUMNS = ("index", "question", "hint", *_LETTERS, "answer", "image", *_LABELS)
_POINTER = 64  # characters: shorter than any picture
_LATIN = str.maketrans("АВСЕ", "ABCE")  # from the Cyrillic letters that look the same


def _read(name: str, lang: str, options: ReaderOptions) -> Iterator[Draft]:
    if options.input is None:
        raise BadInput(f"reader {name}: give the TSV or Parquet file with --input")
    dialogues = Dialogues.of(name, lang, "letter", options)
    folder = ImageFolder.of(options) if options.images else None
    with Spool() as spool:
        pictures = _Pictures(options.input, spool)
        for number, (place, row) in enumerate(_rows(options.input)):
            yield Draft(place, partial(_sample, dialogues, number, row, pictures.of(row), folder))


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".tsv":
        return tsv_rows(path)
    if path.suffix == ".parquet" or path.is_dir():
        return parquet_rows(path, _COLUMNS)
    raise BadInput(f"{path}: a .tsv file, a .parquet file or a folder of them is wanted")


class _Pictures:
    """Pictures of other rows, for the rows that give an index instead; read when the first such row comes."""

    def __init__(self, path: Path, spool: Spool) -> None:
        self._path, self._spool, self._filled = path, spool, False

    def of(self, row: Row) -> str | None:
        """The base64 picture of the row that `row` points to; None if it points to none."""
        try:
            pointer = _pointer(as_object(row()).get("image"))
        except BadInput:
            return None  # its draft says why
        if pointer is None:
            return None
        if not self._filled:
            self._fill()
        return next(iter(self._spool.get(pointer)), None)

    def _fill(self) -> None:
        self._filled = True
        for _, row in _rows(self._path):
            try:
                fields = as_object(row())
                index = _index(fields)
            except BadInput:
                continue
            cell = fields.get("image")
            if isinstance(cell, str) and _pointer(cell) is None:
                self._spool.add(str(index), cell)


def _pointer(cell: Any) -> str | None:
    """The index of the row whose picture this is, if the cell gives one."""
    points = isinstance(cell, str) and len(cell) < _POINTER and cell.isascii() and cell.isdigit()
    return str(int(cell)) if points else None


def _sample(dialogues: Dialogues, number: int, row: Row, borrowed: str | None, folder: ImageFolder | None) -> Sample:
    fields = as_object(row())
    index = _index(fields)
    options = _options(fields)
    hint = None if _is_nothing(fields.get("hint")) else text_field(fields, "hint")
    details: dict[str, Any] = {"index": index}
    for name in _LABELS:
        if not _is_nothing(fields.get(name)):
            details["l2-category" if name in _CATEGORY2 else name] = text_field(fields, name)
    answer = _answer(fields.get("answer"), len(options))
    question = Question(
        str(index),
        text_field(fields, "question"),
        () if answer is None else (answer,),
        details.get("category"),
        options,
        hint,
        details,
    )
    return dialogues.sample(number, str(index), [Turn(question, answer)], _image(fields.get("image"), borrowed, folder))


def _index(fields: dict[str, Any]) -> int:
    index = fields.get("index")
    if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) <= 12:
        index = int(index)
    if type(index) is not int or not 0 <= index < 10**12:
        raise BadInput(f"field 'index': a whole number is wanted, not {index!r:.50}")
    return index


def _is_nothing(cell: Any) -> bool:
    """Whether a cell is empty; tables that went through pandas say so with "nan", or with the number."""
    if isinstance(cell, str):
        return cell.strip().lower() in ("", "nan")
    return cell is None or cell != cell


def _options(fields: dict[str, Any]) -> tuple[str, ...]:
    given = "".join(name for name in _LETTERS if not _is_nothing(fields.get(name)))
    if not _LETTERS.startswith(given):
        hole = next(name for name in _LETTERS if name not in given)
        raise BadInput(f"option {hole} is missing, and {given[-1]} is there")
    if len(given) < 2:
        raise BadInput(f"{len(given)} options; at least A and B are wanted")
    return tuple(text_field(fields, name) for name in given)


def _answer(cell: Any, options: int) -> str | None:
    if _is_nothing(cell):
        return None
    check_text(cell, "field 'answer'")
    answer = str(cell).strip().translate(_LATIN)
    if answer not in [option_letter(number) for number in range(options)]:
        raise BadInput(f"field 'answer': {cell!r:.50} is none of the letters A to {option_letter(options - 1)}")
    return answer


def _image(cell: Any, borrowed: str | None, folder: ImageFolder | None) -> bytes:
    pointer = _pointer(cell)
    if pointer is not None:
        if borrowed is None:
            raise BadInput(f"the image is that of index {pointer:.20}, where there is no picture", "image-missing")
        return from_base64(borrowed)
    if isinstance(cell, str) and cell:
        return from_base64(cell)
    data = from_cell(cell, folder)
    if data is None:
        raise BadInput("the row has no image", "image-missing")
    return data


_TAKES = "--input: the .tsv or .parquet file; --images: only where the table names files"
_OPTIONS = ("images", "lang", "format_prompts", "follow_links")

MMBENCH = Reader(
    "mmbench",
    "https://github.com/open-compass/MMBench",
    "Apache-2.0",
    ("en",),
    partial(_read, "mmbench", "en"),
    _TAKES,
    _OPTIONS,
    split="dev",
)
MMBENCH_RU = Reader(
    "mmbench-ru",
    "https://huggingface.co/datasets/deepvk/MMBench-ru",
    "Apache-2.0",
    ("ru",),
    partial(_read, "mmbench-ru", "ru"),
    _TAKES,
    _OPTIONS,
    split="dev",
)
