"""Why an answer is wrong: the first cause that holds, told with the answers known to the evaluation."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from vlm.eval.tasks import normalise
from vlm.report.results import Prediction

# Both answers of a yes/no question, by language.
_YES_NO = (
    frozenset({"yes", "no"}),
    frozenset({"да", "нет"}),
    frozenset({"так", "ні"}),
    frozenset({"có", "không"}),
)
# A stray foreign gold answer ("XL", "NASA") does not make its script one of the evaluation's.
_SCRIPT_SHARE = 0.1


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNNAMED").split()[0]


def scripts(text: str) -> frozenset[str]:
    """Scripts of the letters of `text`, such as LATIN and CYRILLIC."""
    return frozenset(_script(ch) for ch in text if unicodedata.category(ch) in ("Lu", "Ll", "Lt", "Lo"))


@dataclass(frozen=True)
class Vocabulary:
    """All gold answers of an evaluation, normalised; `words` is the length of the longest one."""

    answers: frozenset[str]
    by_type: dict[str, frozenset[str]]
    scripts: frozenset[str]
    words: int

    @classmethod
    def of(cls, predictions: Iterable[Prediction]) -> "Vocabulary":
        """The vocabulary of an evaluation's rows."""
        by_type: dict[str, set[str]] = {}
        letters: Counter[str] = Counter()
        total = 0
        for row in predictions:
            gold = {normalise(answer) for answer in row.gold}
            by_type.setdefault(row.type, set()).update(gold)
            letters.update(frozenset[str]().union(*map(scripts, gold)))
            total += 1
        answers = frozenset[str]().union(*by_type.values())
        return cls(
            answers=answers,
            by_type={kind: frozenset(known) for kind, known in by_type.items()},
            scripts=frozenset(name for name, rows in letters.items() if rows >= _SCRIPT_SHARE * total),
            words=max((len(answer.split()) for answer in answers), default=0),
        )


def _empty(row: Prediction, text: str, vocabulary: Vocabulary) -> bool:
    return not text


def _wrong_language(row: Prediction, text: str, vocabulary: Vocabulary) -> bool:
    allowed = vocabulary.scripts.union(*map(scripts, row.gold))
    return bool(allowed) and not scripts(text) <= allowed


def _too_long(row: Prediction, text: str, vocabulary: Vocabulary) -> bool:
    return len(text.split()) > vocabulary.words


def _out_of_vocabulary(row: Prediction, text: str, vocabulary: Vocabulary) -> bool:
    return text not in vocabulary.answers


def _yes_no_confused(row: Prediction, text: str, vocabulary: Vocabulary) -> bool:
    gold = {normalise(answer) for answer in row.gold}
    return text not in gold and any(text in pair and gold & pair for pair in _YES_NO)


def _other_category(row: Prediction, text: str, vocabulary: Vocabulary) -> bool:
    return text not in vocabulary.by_type.get(row.type, frozenset())


def _wrong_value(row: Prediction, text: str, vocabulary: Vocabulary) -> bool:
    return True


_DECISIONS: tuple[tuple[str, Callable[[Prediction, str, Vocabulary], bool]], ...] = (
    ("empty", _empty),
    ("wrong language", _wrong_language),
    ("too long", _too_long),
    ("out of vocabulary", _out_of_vocabulary),
    ("yes/no confused", _yes_no_confused),
    ("other category", _other_category),
    ("wrong value", _wrong_value),
)
CAUSES = tuple(name for name, _ in _DECISIONS)


def cause_of(row: Prediction, vocabulary: Vocabulary) -> str:
    """The cause of a wrong answer, one of CAUSES."""
    text = normalise(row.prediction)
    return next(name for name, holds in _DECISIONS if holds(row, text, vocabulary))
