"""GQA: the official JSON, question id → question."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.dialogue import Asked, Check, Dialogues, Turn, as_object, text_field
from shards.readers.images import ImageFolder
from shards.readers.rows import json_items
from shards.sample import Question, check_text

_SPLITS = ("train", "val", "testdev")


def gqa_question(place: str, question_id: str, row: Any) -> Asked:
    """A question in GQA's schema; the program over the scene graph is left behind."""
    fields = as_object(row)
    types = _labels(fields, "types")
    details: dict[str, Any] = {"types": types}
    if fields.get("isBalanced") is not None:
        if not isinstance(fields["isBalanced"], bool):
            raise BadInput("field 'isBalanced': true or false is wanted")
        details["isBalanced"] = fields["isBalanced"]
    if fields.get("groups") is not None:
        details["groups"] = _labels(fields, "groups")
    if fields.get("fullAnswer") is not None:
        details["fullAnswer"] = text_field(fields, "fullAnswer")
    check_text(question_id, "the question's id")
    question, answer = text_field(fields, "question"), text_field(fields, "answer")
    asked = Question(question_id, question, (answer,), text_field(types, "structural"), details=details)
    return Asked(place, text_field(fields, "imageId"), Turn(asked, answer))


def _labels(fields: dict[str, Any], name: str) -> dict[str, str]:
    if not isinstance(fields.get(name), dict):
        raise BadInput(f"field {name!r}: an object of texts is wanted")
    for label, value in fields[name].items():
        check_text(label, f"a name in field {name!r}")
        if value is not None:
            check_text(value, f"field {name!r}, {label!r:.50}")
    return {label: value for label, value in fields[name].items() if value is not None}


def _read(options: ReaderOptions) -> Iterator[Draft]:
    if options.split not in _SPLITS:
        raise BadInput(f"GQA has no answered split {options.split!r:.50}; use one of {', '.join(_SPLITS)}")
    files = _files(options)
    dialogues = Dialogues.of("gqa", "en", "word-or-phrase", options)
    folder = ImageFolder.of(options, ("images",))
    yield from dialogues.drafts(_questions(files), partial(_image, folder))


def _files(options: ReaderOptions) -> list[Path]:
    if options.input is None:
        raise BadInput("reader gqa: give the questions file, or the folder of the official files, with --input")
    if not options.input.is_dir():
        return [options.input]
    balanced = options.input / f"{options.split}_balanced_questions.json"
    if balanced.is_file():
        return [balanced]
    parts = options.input.glob(f"{options.split}_all_questions*.json")
    # _2 before _10
    files = sorted(parts, key=lambda path: (len(path.name), path.name))
    if not files:
        raise BadInput(
            f"{options.input}: neither {balanced.name} nor {options.split}_all_questions*.json is there; check --split"
        )
    return files


def _questions(files: list[Path]) -> Iterator[tuple[str, Check]]:
    for file in files:
        for place, question_id, row in json_items(file):
            yield place, partial(gqa_question, place, question_id, row)


def _image(folder: ImageFolder, image_id: str) -> bytes:
    return folder.read(f"{image_id}.jpg")


GQA = Reader(
    "gqa",
    "https://cs.stanford.edu/people/dorarad/gqa",
    "CC BY 4.0",
    ("en",),
    _read,
    "--input: SPLIT_balanced_questions.json, or its folder, or train_all_questions; --images: GQA's pictures",
    ("images", "lang", "merge", "format_prompts", "follow_links"),
)
