"""easy-VQA: small coloured shapes with questions in a closed grammar; one dialogue or one caption an image."""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import read_json
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.easy_vqa_questions import FORMS, Conclusions, QuestionForm
from shards.readers.images import ImageFolder
from shards.sample import ImagePart, Message, Question, Sample, Text

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Turn:
    question_id: str
    question: str
    answer: str
    form: QuestionForm


@dataclass(frozen=True)
class _Split:
    """A split of the set: image id → its answered questions, both in the order of the file, and the bad rows."""

    folder: Path
    name: str
    turns: dict[int, list[_Turn]]
    bad: list[tuple[str, str]]

    def image(self, image_id: int) -> bytes:
        # an installed package may be all links
        return ImageFolder(self.folder / self.name / "images", follow_links=True).read(f"{image_id}.png")

    def drafts(self, make: Callable[["_Split", int], Sample], images: Iterable[int]) -> Iterator[Draft]:
        for place, why in self.bad:
            yield Draft(place, partial(_refuse, why))
        for image_id in images:
            yield Draft(f"{self.name}/questions.json: image {image_id}", partial(make, self, image_id))


def _read_split(options: ReaderOptions) -> _Split:
    if options.split not in _SPLITS:
        raise BadInput(f"easy-VQA has no split {options.split!r:.50}; use one of {', '.join(_SPLITS)}")
    folder = _data_folder(options)
    path = folder / options.split / "questions.json"
    rows = read_json(path)
    if not isinstance(rows, list):
        raise BadInput(f"{path}: a list of [question, answer, image id] is wanted")
    split = _Split(folder, options.split, {}, [])
    for i, row in enumerate(rows):
        try:
            question, answer, image_id = _check_row(row)
        except BadInput as error:
            split.bad.append((f"{options.split}/questions.json: row {i}", str(error)))
            continue
        of_image = split.turns.setdefault(image_id, [])
        of_image.append(_Turn(f"{options.split}-{image_id}-{len(of_image)}", question, answer, FORMS[question]))
    return split


def _data_folder(options: ReaderOptions) -> Path:
    if options.input is not None:
        return options.input
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise BadInput("easy-VQA is not installed: run `pip install easy-vqa`, or give its folder with --input")
    return Path(spec.origin).parent / "data"


def _refuse(why: str) -> Sample:
    raise BadInput(why)


def _check_row(row: Any) -> tuple[str, str, int]:
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or not isinstance(row[1], str):
        raise BadInput("[question, answer, image id] is wanted")
    question, answer, image_id = row
    if type(image_id) is not int or not 0 <= image_id < 10**12:
        raise BadInput(f"the image id {image_id!r:.50} is not a number")
    if question not in FORMS:
        raise BadInput(f"{question!r:.100} is none of the {len(FORMS)} questions of easy-VQA")
    if answer not in FORMS[question].answers:
        raise BadInput(f"{answer!r:.100} does not answer {question!r}")
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


def _read_dialogues(options: ReaderOptions) -> Iterator[Draft]:
    if options.balance and options.split != "train":
        raise BadInput("--balance thins the turns for training; leave it out for the split test")
    split = _read_split(options)
    if options.balance:
        split = replace(split, turns=_balance(split.turns))
    return split.drafts(_dialogue, split.turns)


def _dialogue(split: _Split, image_id: int) -> Sample:
    turns = split.turns[image_id]
    messages: list[Message] = []
    for turn in turns:
        image = () if messages else (ImagePart(),)
        messages += [Message("user", (*image, Text(turn.question))), Message("assistant", (Text(turn.answer),))]
    return Sample(
        key=f"easyvqa-{split.name}-{image_id:06d}",
        id=f"{split.name}-{image_id}",
        source="easy-vqa",
        lang="en",
        messages=tuple(messages),
        questions=tuple(Question(turn.question_id, turn.question, (turn.answer,), turn.form.type) for turn in turns),
        image=split.image(image_id),
        image_ext="png",
    )


def _read_captions(options: ReaderOptions) -> Iterator[Draft]:
    split = _read_split(options)
    known = {image_id: _conclusions(turns) for image_id, turns in split.turns.items()}
    # nothing can be said of some images; those with contradictory answers are for `_captioned` to refuse
    return split.drafts(_captioned, (image_id for image_id, of in known.items() if of.contradictory or of.caption()))


def _conclusions(turns: Iterable[_Turn]) -> Conclusions:
    known = Conclusions()
    for turn in turns:
        known.learn(turn.form, turn.answer)
    return known


def _captioned(split: _Split, image_id: int) -> Sample:
    known = _conclusions(split.turns[image_id])
    caption = known.caption()
    if known.contradictory or caption is None:
        raise BadInput(f"the answers about image {image_id} contradict each other")
    request = "describe the image."
    return Sample(
        key=f"easyvqa-caption-{split.name}-{image_id:06d}",
        id=f"{split.name}-{image_id}-caption",
        source="easy-vqa",
        lang="en",
        messages=(Message("user", (ImagePart(), Text(request))), Message("assistant", (Text(caption),))),
        questions=(Question(f"{split.name}-{image_id}-caption", request, (caption,), "caption"),),
        image=split.image(image_id),
        image_ext="png",
    )


_TAKES = "--input: the folder with train/ and test/; without it, the installed package easy-vqa"
EASY_VQA = Reader(
    "easy-vqa", "https://github.com/vzhou842/easy-VQA", "MIT", ("en",), _read_dialogues, _TAKES, ("balance",)
)
EASY_VQA_CAPTIONS = Reader(
    "easy-vqa-captions", "https://github.com/vzhou842/easy-VQA", "MIT", ("en",), _read_captions, _TAKES
)
