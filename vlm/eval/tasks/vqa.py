"""Open questions with ten annotators' answers: VQAv2, VizWiz, TextVQA."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from vlm.eval.files import Placed, by_id, first_ids, identity, json_file, objects, text, unwanted
from vlm.eval.tasks.base import Item, Mark, Task
from vlm.eval.tasks.predictions import answers_reader, answers_writer, number_if_it_is_one
from vlm.eval.tasks.vqa_accuracy import (
    m4c_accuracy,
    submitted_by_llava,
    vizwiz_all_ten,
    vizwiz_official,
    vqa_scorer,
    vqav2_lmms_eval,
    vqav2_official,
)

# by language, as the prompt asks for it and the glossary of `vlm translate` writes the annotators'
_UNANSWERABLE = {"en": "unanswerable", "ru": "без ответа"}


def _read_vqav2(truth: Path, questions: Path | None) -> list[Item]:
    """The official annotations and questions; without the latter, items whose question is empty."""
    annotations = _by_question(truth, "annotations")
    wordings = {}
    if questions is not None:
        asked = _by_question(questions, "questions")
        _check_same(truth, annotations, questions, asked)
        wordings = {name: text(placed, "question") for name, placed in asked.items()}
    return [_vqav2_item(name, placed, wordings.get(name, "")) for name, placed in annotations.items()]


def _vqav2_item(name: str, placed: Placed, question: str) -> Item:
    answers = _answers(placed)
    place, fields = placed
    details: dict[str, Any] = {field: text(placed, field) for field in ("question_type", "answer_type")}
    if unnumbered := [number for number, record in enumerate(fields["answers"]) if "answer_id" not in record]:
        raise BadInput(
            f"{place}: field 'answers', entry {unnumbered[0]}: no 'answer_id', without which the official script takes "
            "annotators of one answer for one"
        )
    if records := _not_told_apart(fields["answers"]):
        details["records"] = records
    return Item(name, _image(placed), question, answers, details["answer_type"], details=details)


def _not_told_apart(annotators: Sequence[dict[str, Any]]) -> list[str]:
    """What else each record says, where that can be the same of two; empty where their numbers differ, as a rule."""
    numbers = [record["answer_id"] for record in annotators]
    if all(type(number) is int for number in numbers) and len(set(numbers)) == len(numbers):
        return []
    return [json.dumps(record | {"answer": ""}, sort_keys=True) for record in annotators]


def _read_vizwiz(truth: Path, questions: Path | None) -> list[Item]:
    """The official annotations, a list; an image is asked about once, and its name is the question's id."""
    items = []
    for name, placed in by_id(truth, objects(truth, json_file(truth)), partial(identity, name="image")).items():
        answer_type = text(placed, "answer_type")
        details = {"answer_type": answer_type, "answerable": _answerable(placed)}
        items.append(Item(name, name, text(placed, "question"), _answers(placed), answer_type, details=details))
    return items


def _answerable(placed: Placed) -> int | None:
    """0 or 1, which tables may hold as a text; None where it is left out."""
    place, fields = placed
    value = fields.get("answerable")
    if value is not None and str(value) not in ("0", "1"):
        raise BadInput(f"{place}: field 'answerable': 0 or 1 is wanted, {unwanted(fields, 'answerable')}")
    return None if value is None else int(value)


def _read_textvqa(truth: Path, questions: Path | None) -> list[Item]:
    """The official annotations, a list under "data"."""
    items = []
    for name, placed in _by_question(truth, "data").items():
        place, fields = placed
        answers = _some(place, fields.get("answers"))
        if not all(isinstance(answer, str) for answer in answers):
            raise BadInput(f"{place}: field 'answers': texts are wanted")
        items.append(Item(name, identity(placed, "image_id"), text(placed, "question"), tuple(answers)))
    return items


def _by_question(path: Path, under: str) -> dict[str, Placed]:
    content = json_file(path)
    if not isinstance(content, dict) or not isinstance(content.get(under), list):
        raise BadInput(f"{path}: an object with a list under {under!r} is wanted; is it the right file?")
    return by_id(path, objects(path, content[under]), partial(identity, name="question_id"))


def _check_same(truth: Path, annotated: Mapping[str, Placed], questions: Path, asked: Mapping[str, Placed]) -> None:
    for path, ids, other, others in ((truth, annotated, questions, asked), (questions, asked, truth, annotated)):
        if only := [name for name in ids if name not in others]:
            message = f"{len(only)} ids are not in {other}, first {first_ids(only)}; both must be of one split"
            raise BadInput(f"{path}: {message}")
    if moved := [name for name in asked if _image(asked[name]) != _image(annotated[name])]:
        raise BadInput(
            f"{questions}: {len(moved)} questions have another image than in {truth}, first {first_ids(moved)}"
        )


def _image(placed: Placed) -> str:
    return identity(placed, "image_id")


def _answers(placed: Placed) -> tuple[str, ...]:
    """Each annotator's answer."""
    place, fields = placed
    answers = []
    for number, record in enumerate(_some(place, fields.get("answers"))):
        if not isinstance(record, dict):
            raise BadInput(f"{place}: field 'answers', entry {number}: an object is wanted")
        answers.append(text((f"{place}: field 'answers', entry {number}", record), "answer"))
    return tuple(answers)


def _some(place: str, answers: Any) -> Sequence[Any]:
    if not isinstance(answers, list) or not answers:
        raise BadInput(f"{place}: field 'answers': a list of them is wanted; where they are not public, none is scored")
    return answers


def _unanswerability(marks: Sequence[Mark]) -> dict[str, Any]:
    """VizWiz's second task, in percent, for answers that say "unanswerable", or the word of the language, or do not."""
    known = [mark for mark in marks if mark.item.details.get("answerable") in (0, 1)]
    truth = [mark.item.details["answerable"] == 0 for mark in known]
    said = [_says_unanswerable(mark) for mark in known]
    if not any(truth):
        return {}
    both = sum(a and b for a, b in zip(truth, said, strict=True))
    recall, precision = both / sum(truth), both / sum(said) if any(said) else 0.0
    # of a classifier with two scores only the curve has one corner
    area = recall * precision + (1 - recall) * sum(truth) / len(truth)
    f1 = 2 * both / (sum(truth) + sum(said))
    return {"unanswerability": {"f1_score": round(100 * f1, 2), "average_precision": round(100 * area, 2)}}


def _says_unanswerable(mark: Mark) -> bool:
    # a model that was asked in Russian may answer in English
    return mark.parsed in (_UNANSWERABLE["en"], _UNANSWERABLE.get(mark.item.lang.partition("-")[0]))


def _named(*scorers: tuple[str, Any], more: Any = None) -> dict[str, Any]:
    return {name: vqa_scorer(name, grade, more) for name, grade in scorers}


VQAV2 = Task(
    "vqav2",
    _named(("official", vqav2_official), ("lmms-eval", vqav2_lmms_eval), ("llava", submitted_by_llava(vqav2_official))),
    _read_vqav2,
    answers_reader("question_id", "answer"),
    "word-or-phrase",
    submit=answers_writer("question_id", "answer", number_if_it_is_one),
    questions=True,
    signs=(frozenset({"question_type", "answer_type", "multiple_choice_answer", "answers"}),),
)
VIZWIZ = Task(
    "vizwiz",
    _named(
        ("official", vizwiz_official),
        ("lmms-eval", m4c_accuracy),
        ("llava", submitted_by_llava(vizwiz_official)),
        ("all-ten", vizwiz_all_ten),
        more=_unanswerability,
    ),
    _read_vizwiz,
    answers_reader("image", "answer"),
    "unanswerable word-or-phrase",
    submit=answers_writer("image", "answer"),
    signs=(frozenset({"image", "answerable", "answer_type", "answers"}),),
)
TEXTVQA = Task(
    "textvqa",
    # all three are the M4C evaluator
    _named(("official", m4c_accuracy), ("lmms-eval", m4c_accuracy), ("llava", m4c_accuracy)),
    _read_textvqa,
    answers_reader("question_id", "answer"),
    "word-or-phrase",
    submit=answers_writer("question_id", "answer", number_if_it_is_one),
    signs=(frozenset({"flickr_300k_url", "answers"}), frozenset({"ocr_tokens", "answers"})),
)
