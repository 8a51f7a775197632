"""POPE: is an object in the picture, yes or no; three lists of questions, asked of the same pictures."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.dialogue import Asked, Check, Dialogues, Turn, as_object, id_field, text_field
from shards.readers.images import ImageFolder
from shards.readers.rows import Row, json_rows
from shards.sample import Question

_CATEGORIES = ("random", "popular", "adversarial")
_NAME = re.compile(rf"[a-z]+_pope_({'|'.join(_CATEGORIES)})\.jsonl?")
_LABELS = ("yes", "no")


def _read(options: ReaderOptions) -> Iterator[Draft]:
    files = _files(options)
    dialogues = Dialogues.of("pope", "en", "word-or-phrase", options)
    folder = ImageFolder.of(options, ("val2014",))
    yield from dialogues.drafts(_questions(files), folder.read)


def _files(options: ReaderOptions) -> list[tuple[str, Path]]:
    """(category, file) in the order of the paper."""
    if options.input is None:
        raise BadInput("reader pope: give the file, or the folder of coco_pope_*.json, with --input")
    if not options.input.is_dir():
        named = _NAME.fullmatch(options.input.name)
        return [(named.group(1) if named else options.input.stem, options.input)]
    files = [(category, options.input / f"coco_pope_{category}.json") for category in _CATEGORIES]
    for _, file in files:
        if not file.is_file():
            raise BadInput(f"{file}: not there; all three lists are wanted in a folder, or give one with --input FILE")
    return files


def _questions(files: list[tuple[str, Path]]) -> Iterator[tuple[str, Check]]:
    for category, file in files:
        for place, row in json_rows(file):
            yield place, partial(_check, place, category, row)


def _check(place: str, category: str, row: Row) -> Asked:
    fields = as_object(row())
    # every list numbers its questions from the same start
    number, label = id_field(fields, "question_id"), text_field(fields, "label")
    if label not in _LABELS:
        raise BadInput(f"field 'label': {label!r:.50} is neither yes nor no")
    details = {"category": category, "label": label, "question_id": number}
    asked = Question(f"{category}-{number}", text_field(fields, "text"), (label,), category, details=details)
    return Asked(place, text_field(fields, "image"), Turn(asked, label))


POPE = Reader(
    "pope",
    "https://github.com/RUCAIBox/POPE",
    "MIT",
    ("en",),
    _read,
    "--input: one list as JSON lines, or the folder of coco_pope_*.json; --images: COCO's val2014",
    ("images", "lang", "merge", "format_prompts", "follow_links"),
    split="test",
)
