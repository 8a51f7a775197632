"""Free text: exact match, F1 of words, BLEU and chrF against one or several accepted answers."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shards.errors import BadInput
from vlm.eval.files import Placed, by_id, identity, json_lines, optional_text, unwanted
from vlm.eval.tasks.base import Item, Mark, Outcome, Scorer, Task, breakdown, mean_outcome
from vlm.eval.tasks.predictions import answers_reader

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Corpus = Literal["bleu", "chrf"]
_CORPUS: tuple[Corpus, ...] = ("bleu", "chrf")
_ARTICLES = frozenset({"a", "an", "the"})


def words(answer: str) -> list[str]:
    """Lower-case words without punctuation and English articles, ё as е; an answer of articles alone keeps them."""
    plain = answer.casefold().replace("ё", "е")
    plain = "".join("" if unicodedata.category(mark).startswith("P") else mark for mark in plain)
    found = plain.split()
    return [word for word in found if word not in _ARTICLES] or found


def exact(prediction: str, accepted: str) -> float:
    """Whether the words are equal."""
    return float(words(prediction) == words(accepted))


def word_f1(prediction: str, accepted: str) -> float:
    """Harmonic mean of precision and recall of the words, as SQuAD has it."""
    said, wanted = words(prediction), words(accepted)
    if not said or not wanted:
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))


def _best(compare: Callable[[str, str], float], item: Item, prediction: str) -> float:
    return max(compare(prediction, accepted) for accepted in item.answers)


def _by_question(name: str, compare: Callable[[str, str], float]) -> Scorer:
    def score(items: Sequence[Item], predictions: Mapping[str, str]) -> Outcome:
        marks = []
        for item in items:
            prediction = predictions[item.question_id]
            marks.append(Mark(item, prediction, " ".join(words(prediction)), _best(compare, item, prediction)))
        return mean_outcome(name, marks, _metrics(marks))

    return score


def _metrics(marks: Sequence[Mark]) -> dict[str, Any]:
    pairs = [(mark.item, mark.prediction) for mark in marks]
    of_corpus: dict[str, float] = {name: _Texts(name, marks).score(np.ones(len(marks))) for name in _CORPUS}
    return {
        "exact_match": sum(_best(exact, *pair) for pair in pairs) / len(pairs),
        "f1": sum(_best(word_f1, *pair) for pair in pairs) / len(pairs),
        **of_corpus,
        "by_type": breakdown(marks, lambda mark: mark.type),
    }


class _Texts:
    """A score of sacrebleu over all texts, 0 to 100, from counts of each: it is no mean of the texts' scores."""

    def __init__(self, name: Corpus, marks: Sequence[Mark]) -> None:
        self._metric = _metric(name)
        most = max(len(mark.item.answers) for mark in marks)
        # one list a place among the accepted answers; not every question has as many
        references = [[(*mark.item.answers, *(None,) * most)[place] for mark in marks] for place in range(most)]
        said = [mark.prediction for mark in marks]
        # what its own resampling for confidence intervals sums up
        counts = self._metric._extract_corpus_statistics(said, references)  # type: ignore[arg-type]
        self._counts = np.array(counts, dtype=np.float64)

    def score(self, weights: np.ndarray) -> float:
        return float(self._metric._compute_score_from_stats((weights @ self._counts).tolist()).score)

    def each(self) -> list[float]:
        return [float(self._metric._compute_score_from_stats(row.tolist()).score) for row in self._counts]


def _metric(name: Corpus) -> "Metric":
    # every command that names a task would wait for it
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU() if name == "bleu" else CHRF()


def _by_corpus(name: Corpus) -> Scorer:
    """A mark's points are the score of its text alone, which have another mean than the whole has a score."""

    def score(items: Sequence[Item], predictions: Mapping[str, str]) -> Outcome:
        bare = [Mark(item, predictions[item.question_id], predictions[item.question_id], 0.0) for item in items]
        corpus = _Texts(name, bare)
        each = [_part(points) for points in corpus.each()]
        marks = [Mark(m.item, m.prediction, m.parsed, points) for m, points in zip(bare, each, strict=True)]

        def statistic(weights: np.ndarray) -> float:
            return _part(corpus.score(weights))

        return Outcome(name, statistic(np.ones(len(marks))), _metrics(marks), marks, statistic)

    return score


def _part(percent: float) -> float:
    """Of 1; sacrebleu gives equal texts some 4e-14 more than 100."""
    return min(percent / 100, 1.0)


def read(truth: Path, questions: Path | None) -> list[Item]:
    """JSON lines `{"question_id", "answer" or "answers", "question"?, "image"?, "type"?, "lang"?}`."""
    rows = by_id(truth, json_lines(truth), partial(identity, name="question_id"))
    return [_item(name, placed) for name, placed in rows.items()]


def _item(name: str, placed: Placed) -> Item:
    place, fields = placed
    given = fields.get("answers", fields.get("answer"))
    answers = [given] if isinstance(given, str) else given
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        name = "answer" if "answer" in fields and "answers" not in fields else "answers"
        raise BadInput(f"{place}: field {name!r}: a text or a list of texts is wanted, {unwanted(fields, name)}")
    return Item(
        name,
        identity(placed, "image") if fields.get("image") is not None else name,
        optional_text(placed, "question", ""),
        tuple(answers),
        optional_text(placed, "type", "") or None,
        lang=optional_text(placed, "lang", "en"),
    )


TEXT = Task(
    "text",
    {"f1": _by_question("f1", word_f1), "exact": _by_question("exact", exact),
     "bleu": _by_corpus("bleu"), "chrf": _by_corpus("chrf")},
    read,
    answers_reader("question_id", "prediction"),
    max_new_tokens=128,
)  # fmt: skip
