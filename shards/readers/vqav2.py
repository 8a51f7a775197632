"""VQAv2: the official questions, joined to the official annotations with ten answers a question."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.dialogue import Asked, Check, Dialogues, Turn, as_object, id_field, refused, text_field
from shards.readers.images import ImageFolder
from shards.readers.rows import Row, json_rows
from shards.readers.spool import Spool
from shards.sample import Question

# split → its part of COCO as the question files name it, and as the images do
_PARTS = {
    "train": ("train2014", "train2014"),
    "val": ("val2014", "val2014"),
    "test": ("test2015", "test2015"),
    "test-dev": ("test-dev2015", "test2015"),
}
_ANSWERED = ("train", "val")
_ANSWERS = 10


def _read(options: ReaderOptions) -> Iterator[Draft]:
    if options.split not in _PARTS:
        raise BadInput(f"VQAv2 has no split {options.split!r:.50}; use one of {', '.join(_PARTS)}")
    questions, annotations = _files(options)
    dialogues = Dialogues.of("vqav2", "en", "word-or-phrase", options)
    part = _PARTS[options.split][1]
    # COCO 2017 holds the pictures of 2014 under their plain numbers
    folder = ImageFolder.of(options, (part, "train2017", "val2017"))
    load = partial(_image, folder, part)
    if annotations is None:
        yield from dialogues.drafts(_unanswered(questions), load)
        return
    with Spool() as spool:
        yield from _fill(spool, annotations)
        yield from dialogues.drafts(_answered(questions, spool), load)
        yield from _left(spool, annotations)


def _files(options: ReaderOptions) -> tuple[Path, Path | None]:
    """Questions and annotations; without the latter where they are not public."""
    if options.input is None:
        raise BadInput("reader vqav2: give the questions file, or the folder of the official files, with --input")
    questions, annotations = options.input, options.annotations
    if questions.is_dir():
        part = _PARTS[options.split][0]
        questions, official = (
            questions / f"v2_OpenEnded_mscoco_{part}_questions.json",
            questions / f"v2_mscoco_{part}_annotations.json",
        )
        if annotations is None and (official.exists() or options.split in _ANSWERED):
            annotations = official
    if annotations is None and options.split in _ANSWERED:
        raise BadInput(
            f"VQAv2's answers of {options.split} are public; give them with --annotations, or another --split"
        )
    return questions, annotations


def _fill(spool: Spool, path: Path) -> Iterator[Draft]:
    """Put the annotations into the spool by question_id; drafts of those that have none."""
    for place, row in json_rows(path, "annotations"):
        try:
            annotation = as_object(row())
            question_id = str(id_field(annotation, "question_id"))
        except BadInput as error:
            yield refused(place, f"annotation: {error}", error.kind)
        else:
            spool.add(question_id, annotation)


def _left(spool: Spool, path: Path) -> Iterator[Draft]:
    number, first = 0, ""
    for question_id, annotations in spool.groups():
        number += len(annotations)
        first = first or question_id
    if number:
        message = f"{number} annotations belong to no question, first that of question_id {first}"
        yield refused(str(path), f"{message}; both files must be of one split")


def _unanswered(questions: Path) -> Iterator[tuple[str, Check]]:
    for place, row in json_rows(questions, "questions"):
        yield place, partial(_check, place, row, None)


def _answered(questions: Path, spool: Spool) -> Iterator[tuple[str, Check]]:
    for place, row in json_rows(questions, "questions"):
        yield place, partial(_check, place, row, _annotations_of(row, spool))


def _annotations_of(row: Row, spool: Spool) -> list[Any]:
    try:
        question_id = str(id_field(as_object(row()), "question_id"))
    except BadInput:
        return []  # the check of the row says why
    return spool.pop(question_id)


def _check(place: str, row: Row, annotations: list[Any] | None) -> Asked:
    fields = as_object(row())
    question_id, image_id = id_field(fields, "question_id"), id_field(fields, "image_id")
    question = text_field(fields, "question")
    if annotations is None:
        return Asked(place, str(image_id), Turn(Question(str(question_id), question, ()), None))
    if not annotations:
        raise BadInput(f"question_id {question_id} has no annotation, or occurs twice; both files must be of one split")
    if len(annotations) > 1:
        raise BadInput(f"question_id {question_id} has {len(annotations)} annotations; one is wanted", "duplicate")
    try:
        turn = _turn(question_id, image_id, question, annotations[0])
    except BadInput as error:
        raise BadInput(f"annotation of question_id {question_id}: {error}", error.kind) from error
    return Asked(place, str(image_id), turn)


def _turn(question_id: int, image_id: int, question: str, annotation: dict[str, Any]) -> Turn:
    if id_field(annotation, "image_id") != image_id:
        raise BadInput(f"its image_id is {annotation['image_id']} and the question's is {image_id}")
    answer_type = text_field(annotation, "answer_type")
    details: dict[str, Any] = {"question_type": text_field(annotation, "question_type"), "answer_type": answer_type}
    answers, confidences = _answers(annotation.get("answers"))
    if confidences:
        details["confidences"] = confidences
    asked = Question(str(question_id), question, answers, answer_type, details=details)
    return Turn(asked, text_field(annotation, "multiple_choice_answer"))


def _answers(given: Any) -> tuple[tuple[str, ...], list[str]]:
    """The ten answers, numbered from 1 in their order, and how sure each annotator was if all say it."""
    if not isinstance(given, list) or len(given) != _ANSWERS:
        raise BadInput(f"field 'answers': a list of {_ANSWERS} is wanted")
    answers, confidences = [], []
    for number, item in enumerate(given, 1):
        fields = as_object(item)
        if fields.get("answer_id") != number:
            raise BadInput(
                f"answer {number} has answer_id {fields.get('answer_id')!r:.50}; they are numbered from 1 in order"
            )
        answers.append(text_field(fields, "answer"))
        if "answer_confidence" in fields:
            confidences.append(text_field(fields, "answer_confidence"))
    return tuple(answers), confidences if len(confidences) == _ANSWERS else []


def _image(folder: ImageFolder, part: str, image_id: str) -> bytes:
    number = f"{int(image_id):012d}.jpg"
    try:
        return folder.read(f"COCO_{part}_{number}")
    except BadInput:
        with contextlib.suppress(BadInput):
            return folder.read(number)
        raise


VQAV2 = Reader(
    "vqav2",
    "https://visualqa.org",
    "CC BY 4.0",
    ("en",),
    _read,
    "--input: the questions JSON (with --annotations) or the folder of both; --images: COCO's pictures",
    ("images", "annotations", "lang", "merge", "format_prompts", "follow_links"),
)
