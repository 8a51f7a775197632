"""GQA, and GQA-ru: one true answer, and what kind of question it is."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import punctuation
from typing import Any

from shards.errors import BadInput
from shards.readers.rows import json_items, parquet_rows
from vlm.eval.files import Placed, by_id, head, identity, json_file, json_lines, objects, text
from vlm.eval.tasks.base import Item, Mark, Outcome, Scorer, Task, mean_outcome
from vlm.eval.tasks.groups import grouped
from vlm.eval.tasks.predictions import answers_reader, answers_writer
from vlm.eval.tasks.russian import check_inflection, same_words, words
from vlm.eval.tasks.vqa_accuracy import percent, percent_by

# (prediction, true answer) → what was compared, and whether it is right
Match = Callable[[str, str], tuple[str, bool]]

_NO_PUNCTUATION = str.maketrans("", "", punctuation)
# operations that ask for the answer and are no step of the way to it
_LAST_STEPS = ("exist", "query: name", "choose name")


def _official(prediction: str, answer: str) -> tuple[str, bool]:
    """As GQA's own script: equal to the letter."""
    return prediction, prediction == answer


def _llava(prediction: str, answer: str) -> tuple[str, bool]:
    """As LLaVA prepares answers for that script: without final periods, in small letters."""
    parsed = prediction.rstrip(".").lower()
    return parsed, parsed == answer


def _lmms_eval(prediction: str, answer: str) -> tuple[str, bool]:
    """As lmms-eval: without case and ASCII punctuation; spaces around count where punctuation had hidden them."""
    parsed = prediction.strip().lower().translate(_NO_PUNCTUATION)
    return parsed, parsed == answer.lower().translate(_NO_PUNCTUATION)


def _russian(prediction: str, answer: str) -> tuple[str, bool]:
    """The same Russian words in any form."""
    return " ".join(words(prediction)), same_words(prediction, answer)


def _scorer(name: str, match: Match) -> Scorer:
    def scorer(items: Sequence[Item], predictions: Mapping[str, str]) -> Outcome:
        marks = []
        for item in items:
            parsed, right = match(predictions[item.question_id], item.answers[0])
            marks.append(Mark(item, predictions[item.question_id], parsed, float(right)))
        return mean_outcome(name, marks, _metrics(marks))

    return scorer


def _metrics(marks: Sequence[Mark]) -> dict[str, Any]:
    """Named as in GQA's script; accuracies in percent. What the file does not tell is left out.

    Questions without a structural type, which stand in no table of types, are counted as `untyped`.
    """
    metrics: dict[str, Any] = {"accuracy": percent(marks)} | percent_by(marks, _kind)
    metrics |= {
        "accuracyPerStructuralType": _by(marks, lambda mark: _type(mark, "structural")),
        "accuracyPerSemanticType": _by(marks, lambda mark: _type(mark, "semantic")),
        "accuracyPerSteps": _by(marks, lambda mark: mark.item.details.get("steps")),
        "accuracyPerLength": _by(marks, lambda mark: len(mark.item.question.split())),
    }
    if untyped := sum(_kind(mark) is None for mark in marks):
        metrics["untyped"] = untyped
    distribution = _distribution(marks)
    return metrics | ({} if distribution is None else {"distribution": distribution})


def _kind(mark: Mark) -> str | None:
    structural = _type(mark, "structural")
    return structural and ("open" if structural == "query" else "binary")


def _type(mark: Mark, kind: str) -> str | None:
    types: Mapping[str, str] = mark.item.details.get("types") or {}
    return types.get(kind)


def _by(marks: Sequence[Mark], group: Callable[[Mark], Any]) -> dict[str, dict[str, float]]:
    found = grouped(marks, group)
    return {str(name): {"n": len(of_name), "accuracy": percent(of_name)} for name, of_name in found.items()}


def _distribution(marks: Sequence[Mark]) -> float | None:
    """Chi-square of predicted against true answers in each group of questions, weighted by their size; lower is better.

    None where no question has a group.
    """
    true: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for mark in marks:
        if (group := (mark.item.details.get("groups") or {}).get("global")) is not None:
            true[group][mark.item.answers[0]] += 1
            predicted[group][mark.parsed] += 1
    if not true:
        return None
    total = 0.0
    for group, answers in true.items():
        away = sum((predicted[group][answer] - count) ** 2 / count for answer, count in answers.items())
        total += away * answers.total()
    return round(total / sum(answers.total() for answers in true.values()) / 100, 2)


def _read(lang: str, truth: Path, questions: Path | None) -> list[Item]:
    """The official object of questions by id; rows with a field `id` as JSON lines, a JSON list or Parquet."""
    rows = by_id(truth, _rows(truth), partial(identity, name="id"))
    return [_item(name, placed, lang) for name, placed in rows.items()]


def _rows(truth: Path) -> Iterator[Placed]:
    if truth.suffix == ".parquet":
        yield from ((place, row()) for place, row in parquet_rows(truth))
    elif truth.suffix == ".jsonl":
        yield from json_lines(truth)
    elif _is_object(truth):
        for place, name, fields in json_items(truth):
            if not isinstance(fields, dict):
                raise BadInput(f"{place}, {name!r:.100}: an object is wanted; is it GQA's file of questions?")
            yield f"{truth}: question {name:.100}", fields | {"id": name}
    else:
        yield from objects(truth, json_file(truth))


def _is_object(path: Path) -> bool:
    return head(path, 64).lstrip().startswith(b"{")


def _item(name: str, placed: Placed, lang: str) -> Item:
    place, fields = placed
    details: dict[str, Any] = {}
    for label in ("types", "groups"):
        if fields.get(label) is not None:
            if not isinstance(fields[label], dict):
                raise BadInput(f"{place}: field {label!r}: an object is wanted")
            known = {kind: value for kind, value in fields[label].items() if value is not None}
            details[label] = {kind: text((f"{place}: field {label!r}", known), kind) for kind in known}
    if not isinstance(fields.get("isBalanced", True), bool):
        raise BadInput(f"{place}: field 'isBalanced': true or false is wanted")
    details["isBalanced"] = fields.get("isBalanced", True)
    if fields.get("semantic") is not None:
        details["steps"] = _steps(place, fields["semantic"])
    image = identity(placed, "imageId") if "imageId" in fields else name
    structural = details.get("types", {}).get("structural")
    return Item(
        name, image, text(placed, "question"), (text(placed, "answer"),), structural, lang=lang, details=details
    )


def _steps(place: str, program: Any) -> int:
    """How many operations the program over the scene graph has, the last one aside."""
    if not isinstance(program, list) or not all(isinstance(step, dict) for step in program):
        raise BadInput(f"{place}: field 'semantic': a list of objects is wanted")
    steps = [f"{step.get('operation')}: {step.get('argument')}" for step in program]
    return sum(not any(last in step for last in _LAST_STEPS) for step in steps)


def _is_balanced(item: Item) -> bool:
    return item.details.get("isBalanced", True) is not False


def _check_russian(items: Sequence[Item], scorer: str = "") -> None:
    if scorer == "russian":
        check_inflection()


_SIGNS = (frozenset({"imageId", "answer", "types"}), frozenset({"questionId", "prediction"}))
_SCORERS = {
    name: _scorer(name, match)
    for name, match in (("official", _official), ("lmms-eval", _lmms_eval), ("llava", _llava))
}
GQA = Task(
    "gqa",
    _SCORERS,
    partial(_read, "en"),
    answers_reader("questionId", "prediction"),
    "word-or-phrase",
    submit=answers_writer("questionId", "prediction"),
    counts=_is_balanced,
    signs=_SIGNS,
)
GQA_RU = Task(
    "gqa-ru",
    _SCORERS | {"russian": _scorer("russian", _russian)},
    partial(_read, "ru"),
    answers_reader("questionId", "prediction"),
    "word",
    submit=answers_writer("questionId", "prediction"),
    counts=_is_balanced,
    check=_check_russian,
    signs=_SIGNS,
)
