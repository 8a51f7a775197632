"""MMBench and MMBench-ru: a question is right only if it is in every rotation of its options."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from shards.errors import BadInput
from shards.mmbench import ROUND
from vlm.eval.files import first_ids
from vlm.eval.tasks.base import Item, Mark, Outcome, Scorer, Task, breakdown
from vlm.eval.tasks.letters import Extract, latin, letters, llava, official, vlmevalkit
from vlm.eval.tasks.letters_lmms import lmms
from vlm.eval.tasks.mmbench_table import read, read_predictions, write

# it scores the rows that are there
_LENIENT = "lmms-eval"


def circular(name: str, extract: Extract, *, maps: bool = False) -> Scorer:
    """The scorer `name` that reads answers with `extract`, which `maps` look-alikes of letters or does not."""

    def score(items: Sequence[Item], predictions: Mapping[str, str]) -> Outcome:
        marks = [_mark(item, predictions[item.question_id], extract) for item in items]
        return _outcome(name, marks, sum(latin(mark.prediction)[1] > 0 for mark in marks) if maps else 0)

    return score


def check_main_rows(items: Sequence[Item], scorer: str = "") -> None:
    """BadInput where there is no main row, whatever the scorer."""
    if not any(_index(item) < ROUND for item in items):
        raise BadInput(f"mmbench: no main rows (index below {ROUND})")


def check_rotations(items: Sequence[Item], scorer: str = "") -> None:
    """BadInput, naming the first indices, where rows of a question are no rotations of each other, or where main rows
    or rotations are missing and the scorer needs them."""
    check_main_rows(items)
    if odd := _no_rotations(items):
        raise BadInput(
            f"mmbench: {len(odd)} rows are no rotations of their question (other options, another right one, or the "
            f"same order), first index {first_ids(map(str, odd))}"
        )
    if scorer != _LENIENT and (missing := missing_rows(items)):
        mains = sum(index < ROUND for index in missing)
        raise BadInput(
            f"mmbench: {mains} main rows and {len(missing) - mains} rotations are missing, first index "
            f"{first_ids(map(str, missing))}; get the whole file, or score what is there with scorer {_LENIENT}"
        )


def _no_rotations(items: Sequence[Item]) -> list[int]:
    """Indices of rows that are not the first row of their question with its options in an order of their own.

    Any order is taken: in some questions of the official dev file the last option stays where it is. Of a translation
    nothing is said: its rows may word an option differently.
    """
    first: dict[int, Item] = {}
    orders: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    odd = []
    for item in sorted((item for item in items if item.lang == "en"), key=_index):
        question = _question(item)
        main, seen = first.setdefault(question, item), orders[question]
        same = sorted(item.options) == sorted(main.options) and _right(item) == _right(main)
        if not same or (item.options in seen and len(set(item.options)) == len(item.options)):
            odd.append(_index(item))
        seen.add(item.options)
    return odd


def _right(item: Item) -> list[str]:
    """Texts of the right options; none where they are not public."""
    return [item.options[letters(item).index(letter)] for letter in item.answers]


def missing_rows(items: Sequence[Item]) -> list[int]:
    """Indices of the main rows and rotations that questions lack, as far as the rows that are there tell.

    A question has as many rows as options that move in them: in 53 questions of the official dev file the fourth stays
    where it is. Where none is seen to move, as in a single row, as many as the longest question of as many options:
    that is one too many for such a one. A question none of whose rows is there is not missed, nor are the rotations of
    a set of main rows alone.
    """
    rows: dict[int, dict[int, Item]] = defaultdict(dict)
    for item in items:
        rows[_question(item)][_index(item) // ROUND] = item
    most: dict[int, int] = defaultdict(int)
    for found in rows.values():
        options = _options(found)
        most[options] = min(options, max(most[options], 1 + max(found)))
    return sorted(
        question + round * ROUND
        for question, found in rows.items()
        for round in range(_moving(found) or most[_options(found)])
        if round not in found
    )


def _options(rows: Mapping[int, Item]) -> int:
    return max(len(item.options) for item in rows.values())


def _moving(rows: Mapping[int, Item]) -> int:
    """How many options are not the same in all rows of a question; 0 where none changes places with another."""
    places = itertools.zip_longest(*(item.options for item in rows.values()))
    moving = sum(len(set(texts)) > 1 for texts in places)
    return moving if moving > 1 else 0


def _index(item: Item) -> int:
    return int(item.details.get("index", item.question_id))


def _question(item: Item) -> int:
    return _index(item) % ROUND


def _mark(item: Item, prediction: str, extract: Extract) -> Mark:
    letter = extract(item, prediction)
    return Mark(item, prediction, letter, float(letter != "" and letter == item.answers[0]))


def _outcome(scorer: str, marks: Sequence[Mark], mapped: int) -> Outcome:
    rows: dict[int, list[Mark]] = defaultdict(list)
    for mark in marks:
        rows[_question(mark.item)].append(mark)
    place = {_index(mark.item): number for number, mark in enumerate(marks)}
    mains = [(question, place[question]) for question in rows if question in place]
    where = np.array([number for _, number in mains], dtype=int)
    hits = np.array([min(mark.points for mark in rows[question]) for question, _ in mains])

    def statistic(weights: np.ndarray) -> float:
        return float(weights[where] @ hits / weights[where].sum())

    main_rows = [marks[number] for number in where]
    sets = {
        "circular": [Mark(m.item, m.prediction, m.parsed, hit) for m, hit in zip(main_rows, hits, strict=True)],
        "vanilla_main": main_rows,
        "vanilla_all": marks,
    }
    metrics = {name: float(np.mean([mark.points for mark in found])) for name, found in sets.items()}
    counts = {
        "questions": len(mains),
        "rows": len(marks),
        "missing_rows": len(missing_rows([mark.item for mark in marks])),
        "look_alikes_mapped": mapped,
        "no_option_found": sum(not mark.parsed for mark in marks),
    }
    by = {
        f"by_{group}": {name: breakdown(found, partial(_label, group)) for name, found in sets.items()}
        for group in ("category", "l2-category")
        if any(group in mark.item.details for mark in marks)
    }
    return Outcome(scorer, statistic(np.ones(len(marks))), {**metrics, **counts, **by}, marks, statistic)


def _label(group: str, mark: Mark) -> str:
    return str(mark.item.details.get(group, "none"))


_SCORERS = {
    "official": circular("official", official, maps=True),
    "vlmevalkit": circular("vlmevalkit", vlmevalkit),
    "lmms-eval": circular("lmms-eval", lmms),
    "llava": circular("llava", llava),
}

MMBENCH = Task(
    "mmbench",
    _SCORERS,
    partial(read, "en"),
    read_predictions,
    prompt="letter",
    choices=letters,
    submit=write,
    one_file=True,
    check=check_rotations,
    signs=(frozenset({"index", "question", "A", "B"}), frozenset({"index", "prediction"})),
)
# the published set has lost every tenth row to its translation, and published scores are of what is left
MMBENCH_RU = replace(MMBENCH, name="mmbench-ru", read=partial(read, "ru"), check=check_main_rows)
