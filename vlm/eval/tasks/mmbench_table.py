"""MMBench's files: a table of rows with options, an index and perhaps predictions."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.extras import require
from shards.files import write_atomic
from shards.mmbench import LABELS, LETTERS, answer_letter, is_nothing, option_letters, picture, row_index
from vlm.eval.files import Placed, by_id, table
from vlm.eval.tasks.base import Item
from vlm.eval.tasks.letters import letters
from vlm.eval.tasks.predictions import answers_reader

# a spreadsheet program's own limit; the library would cut the text
_MOST_CELL = 32_767


def read(lang: str, truth: Path, questions: Path | None = None) -> list[Item]:
    """Items of a .tsv or .xlsx file; rows without an answer, as in the test split, have none."""
    if truth.suffix == ".jsonl":
        raise BadInput(f"{truth}: JSON lines are answers alone; name the official table, .tsv or .xlsx, with --truth")
    return [_item(lang, placed) for placed in by_id(truth, table(truth), _index).values()]


def _item(lang: str, placed: Placed) -> Item:
    place, cells = placed
    with _at(place):
        _check_columns(cells, "question", "A", "B", "answer")
        index, given = row_index(cells), option_letters(cells)
        answer = answer_letter(cells["answer"], given)
    details: dict[str, Any] = {"index": index}
    details |= {name: cells[column] for column, name in LABELS.items() if not is_nothing(cells.get(column))}
    return Item(
        str(index),
        picture(index, cells.get("image")),
        cells["question"],
        () if answer is None else (answer,),
        details.get("category"),
        tuple(cells[letter] for letter in given),
        lang,
        details,
    )


def _index(placed: Placed) -> str:
    place, cells = placed
    with _at(place):
        _check_columns(cells, "index")
        return str(row_index(cells))


def _check_columns(cells: Mapping[str, str], *names: str) -> None:
    for name in names:
        if name not in cells:
            raise BadInput(f"no column {name!r}; MMBench has index, question, A, B, C, D, answer")


@contextmanager
def _at(place: str) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None


def read_predictions(path: Path) -> dict[str, str]:
    """Column `prediction` of a .tsv or .xlsx file, or JSON lines `{"index", "prediction"}`."""
    if path.suffix == ".jsonl":
        return answers_reader("index", "prediction")(path)
    rows = by_id(path, table(path), _index)
    if lacking := next((place for place, cells in rows.values() if "prediction" not in cells), None):
        raise BadInput(f"{lacking}: no column 'prediction'")
    return {name: cells["prediction"] for name, (_, cells) in rows.items()}


def write(items: Sequence[Item], predictions: Mapping[str, str], path: Path) -> None:
    """The table that MMBench's server takes, as .xlsx or .tsv."""
    options = max(4, *(len(item.options) for item in items))
    header = ["index", "question", *LETTERS[:options], "prediction", "answer", "category", "l2-category", "split"]
    rows = [header, *([*map(str, _row(item, predictions[item.question_id], header))] for item in items)]
    if path.suffix == ".tsv":
        buffer = io.StringIO()
        # quoted: a bare carriage return would end a row for whoever reads it
        csv.writer(buffer, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
        write_atomic(path, buffer.getvalue())
    elif path.suffix == ".xlsx":
        write_atomic(path, _workbook(rows))
    else:
        raise BadInput(f"{path}: MMBench takes .xlsx or .tsv")


def _row(item: Item, prediction: str, header: Sequence[str]) -> list[object]:
    cells = {
        **item.details,
        "index": item.details.get("index", item.question_id),
        "question": item.question,
        **dict(zip(letters(item), item.options, strict=True)),
        "prediction": prediction,
        "answer": "".join(item.answers[:1]),
    }
    return [cells.get(name, "") for name in header]


def _workbook(rows: Sequence[Sequence[str]]) -> bytes:
    require("openpyxl", "eval", "an .xlsx file (a .tsv file does not)")
    from openpyxl import Workbook  # type: ignore[import-untyped]
    from openpyxl.cell import WriteOnlyCell  # type: ignore[import-untyped]
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE  # type: ignore[import-untyped]

    for row in rows:
        for name, text in zip(rows[0], row, strict=True):
            if len(text) > _MOST_CELL:
                where = f"index {row[0]}: column {name!r}"
                raise BadInput(f"{where}: {len(text)} characters, a cell of .xlsx holds {_MOST_CELL}; name a .tsv file")
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for number, row in enumerate(rows):
        cells = []
        for name, text in zip(rows[0], row, strict=True):
            if name == "index" and number:
                cells.append(WriteOnlyCell(sheet, int(text)))
                continue
            cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", text))
            # an answer that begins with "=" is no formula
            cell.data_type = "s"
            cells.append(cell)
        sheet.append(cells)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()
