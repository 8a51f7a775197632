"""easy-VQA: small coloured shapes with questions in a closed grammar; one dialogue or one caption an image."""

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import read_json
from shards.readers.base import Reader, ReaderOptions
from shards.readers.easy_vqa_questions import FORMS, Conclusions, QuestionForm
from shards.sample import ImagePart, Message, Question, Sample, Text

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Turn:
    question_id: str
    question: str
    answer: str
    form: QuestionForm


def _data_folder(options: ReaderOptions) -> Path:
    if options.input is not None:
        return options.input
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise BadInput("easy-VQA is not installed: run `pip install easy-vqa`, or give its folder with --input")
    return Path(spec.origin).parent / "data"


def _read_turns(folder: Path, split: str) -> dict[int, list[_Turn]]:
    """Image id → its answered questions, both in the order of the file."""
    path = folder / split / "questions.json"
    rows = read_json(path)
    if not isinstance(rows, list):
        raise BadInput(f"{path}: a list of [question, answer, image id] is wanted")
    turns: dict[int, list[_Turn]] = {}
    for i, row in enumerate(rows):
        question, answer, image_id = _check_row(row, f"{path}: row {i}")
        of_image = turns.setdefault(image_id, [])
        of_image.append(_Turn(f"{split}-{image_id}-{len(of_image)}", question, answer, FORMS[question]))
    return turns


def _check_row(row: Any, at: str) -> tuple[str, str, int]:
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or not isinstance(row[1], str):
        raise BadInput(f"{at}: [question, answer, image id] is wanted")
    question, answer, image_id = row
    if type(image_id) is not int or not 0 <= image_id < 10**12:
        raise BadInput(f"{at}: the image id {image_id!r:.50} is not a number")
    if question not in FORMS:
        raise BadInput(f"{at}: {question!r:.100} is none of the {len(FORMS)} questions of easy-VQA")
    if answer not in FORMS[question].answers:
        raise BadInput(f"{at}: {answer!r:.100} does not answer {question!r}")
    return question, answer, image_id


def _balance(turns: dict[int, list[_Turn]]) -> dict[int, list[_Turn]]:
    """Remove the language prior: among yes/no turns about shapes, and among those about colours, keep as many
    of each of (negated or not) x (yes or no). Which ones go is decided by the digest of the question id."""
    groups: dict[tuple[str, bool, str], list[_Turn]] = {}
    for turn in (turn for of_image in turns.values() for turn in of_image if turn.form.offered is not None):
        groups.setdefault((turn.form.asks, turn.form.negated, turn.answer), []).append(turn)
    dropped: set[str] = set()
    for asks in ("shape", "color"):
        four = [groups.get((asks, negated, answer), []) for negated in (False, True) for answer in ("yes", "no")]
        kept = min(len(group) for group in four)
        for group in four:
            ranked = sorted(turn.question_id for turn in group)
            ranked.sort(key=lambda question_id: hashlib.sha256(question_id.encode()).digest())
            dropped.update(ranked[kept:])
    left = {image: [turn for turn in of_image if turn.question_id not in dropped] for image, of_image in turns.items()}
    return {image: of_image for image, of_image in left.items() if of_image}


def _image(folder: Path, split: str, image_id: int) -> bytes:
    path = folder / split / "images" / f"{image_id}.png"
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise BadInput(f"easy-VQA has no split {split!r:.50}; use one of {', '.join(_SPLITS)}")


def _read_dialogues(options: ReaderOptions) -> Iterator[Sample]:
    _check_split(options.split)
    if options.balance and options.split != "train":
        raise BadInput("--balance thins the turns for training; leave it out for the split test")
    folder = _data_folder(options)
    turns = _read_turns(folder, options.split)
    if options.balance:
        turns = _balance(turns)
    for image_id, of_image in islice(turns.items(), options.limit):
        messages: list[Message] = []
        for turn in of_image:
            image = () if messages else (ImagePart(),)
            messages += [Message("user", (*image, Text(turn.question))), Message("assistant", (Text(turn.answer),))]
        questions = [Question(turn.question_id, turn.question, (turn.answer,), turn.form.type) for turn in of_image]
        yield Sample(
            key=f"easyvqa-{options.split}-{image_id:06d}",
            id=f"{options.split}-{image_id}",
            source="easy-vqa",
            lang="en",
            messages=tuple(messages),
            questions=tuple(questions),
            image=_image(folder, options.split, image_id),
            image_ext="png",
        )


def _read_captions(options: ReaderOptions) -> Iterator[Sample]:
    _check_split(options.split)
    if options.balance:
        raise BadInput("--balance is for easy-vqa; captions have no yes/no questions")
    folder = _data_folder(options)
    return islice(_captions(folder, options.split), options.limit)


def _captions(folder: Path, split: str) -> Iterator[Sample]:
    request = "describe the image."
    for image_id, of_image in _read_turns(folder, split).items():
        known = Conclusions()
        for turn in of_image:
            known.learn(turn.form, turn.answer)
        if known.contradictory:
            path = folder / split / "questions.json"
            raise BadInput(f"{path}: the answers about image {image_id} contradict each other")
        caption = known.caption()
        if caption is None:
            continue
        yield Sample(
            key=f"easyvqa-caption-{split}-{image_id:06d}",
            id=f"{split}-{image_id}-caption",
            source="easy-vqa",
            lang="en",
            messages=(Message("user", (ImagePart(), Text(request))), Message("assistant", (Text(caption),))),
            questions=(Question(f"{split}-{image_id}-caption", request, (caption,), "caption"),),
            image=_image(folder, split, image_id),
            image_ext="png",
        )


EASY_VQA = Reader("easy-vqa", "https://github.com/vzhou842/easy-VQA", "MIT", ("en",), _read_dialogues)
EASY_VQA_CAPTIONS = Reader("easy-vqa-captions", "https://github.com/vzhou842/easy-VQA", "MIT", ("en",), _read_captions)
