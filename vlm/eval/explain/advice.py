"""What to set against each cause."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shards.prompts import prompts
from vlm.eval.explain.case import LETTERS
from vlm.eval.explain.evaluation import Evaluation

# a cause is spoken of from this share of all questions on
THRESHOLD = 0.005


@dataclass(frozen=True)
class Recommendation:
    """What to do about `count` answers of one cause, which would gain `at_most` points.

    `settings` name the keys, with a value where one is known; `tries` are those that `vlm explain --try` can measure
    at once.
    """

    cause: str
    finding: str
    count: int
    at_most: float
    advice: str
    settings: tuple[str, ...]
    tries: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Remedy:
    """Advice in words, with its settings and those that can be tried at once."""

    advice: str
    settings: tuple[str, ...]
    tries: tuple[str, ...] = ()


def remedy(cause: str, evaluation: Evaluation) -> Remedy | None:
    """Against a cause of wrong answers of an evaluation; None where nothing can be done."""
    make = _REMEDIES.get(cause)
    return make(evaluation) if make else None


def _format(ask: str, admit: str, otherwise: str, *settings: str) -> Callable[[Evaluation], Remedy]:
    """The form of the answer is at fault: say it or admit no other, where that is not done yet; and train."""

    def make(evaluation: Evaluation) -> Remedy:
        found = [(admit, _constrain(evaluation)), (ask, _instruction(evaluation))]
        ways, tries = [way for way, setting in found if setting], tuple(setting for _, setting in found if setting)
        advice = "; ".join(filter(None, (" or ".join(ways), otherwise)))
        return Remedy(advice, (*tries, *(settings or ("data.mix",))), tries)

    return make


def _data(advice: str, *settings: str) -> Callable[[Evaluation], Remedy]:
    return lambda evaluation: Remedy(advice, settings)


def _cut(evaluation: Evaluation) -> Remedy:
    now = evaluation.folder.generation.get("max_new_tokens")
    longer = f"eval.max_new_tokens={2 * now if isinstance(now, int) and now else 64}"
    return Remedy("let answers be longer", (longer,), (longer,) if _can_ask_again(evaluation) else ())


def _normalisation(evaluation: Evaluation) -> Remedy:
    own = evaluation.folder.scorer
    others = [name for name in evaluation.folder.task.scorers if name != own]
    train = "train on answers written as the right ones are"
    if not others:
        return Remedy(train, ("data.mix",))
    return Remedy(f"say the other scorers' figures too; {train}", (f"eval.scorer={own},{','.join(others)}",))


def _refused(evaluation: Evaluation) -> Remedy:
    train = "train on answers without refusals"
    if evaluation.folder.result.get("model") != "server":
        return Remedy(train, ("data.mix",))
    return Remedy(f"take another model, or {train}", ("eval.model", "data.mix"))


def _wrong_language(evaluation: Evaluation) -> Remedy:
    asking, admitting = _instruction(evaluation), _constrain(evaluation)
    tries = tuple(filter(None, (asking, admitting)))
    ways = (", or ask in that language" if asking else "") + (", or admit the task's answers only" if admitting else "")
    advice = f"train on more dialogues in {evaluation.folder.lang!r:.10}{ways}"
    return Remedy(advice, (*tries, "data.mix"), tries)


def _can_ask_again(evaluation: Evaluation) -> bool:
    return evaluation.folder.protocol == "direct"


def _constrain(evaluation: Evaluation) -> str:
    """`eval.constrain=true` where the engine can, and the task knows the answers of its questions."""
    found = evaluation.folder
    if found.result.get("model") == "server" or not _can_ask_again(evaluation) or found.generation.get("constrain"):
        return ""
    known = all(found.task.choices(each.item) for each in evaluation.rows)
    return "eval.constrain=true" if known else ""


def _instruction(evaluation: Evaluation) -> str:
    """The response-format prompt that the right answers call for, unless that is how was asked."""
    if not _can_ask_again(evaluation):
        return ""
    answers = [answer for each in evaluation.rows for answer in each.item.answers]
    name = "letter" if LETTERS.issuperset(answers) else "word"
    if name == "word" and any(" " in answer.strip() for answer in answers):
        name = "word-or-phrase"
    text = prompts()[name].get(evaluation.folder.lang.partition("-")[0], "")
    return f"eval.instruction={text}" if text and text not in evaluation.folder.prompt.split("\n") else ""


_TRANSLATION = ("translate.memory", "translate.engine", "translate.glossary")
_REMEDIES: dict[str, Callable[[Evaluation], Remedy]] = {
    "untranslated": _data("add them to the translation memory, or put an engine behind it", *_TRANSLATION),
    "lost in translation": _data(
        "fix the translation of these answers in the glossary, or take a better engine",
        *_TRANSLATION[::-1],
    ),
    "missing image": _data("build the shards with their images, and train on them", "eval.data", "data.train"),
    "refused": _refused,
    "empty": _format(
        "say how to answer",
        "admit the task's answers only",
        "look at the template's end of turn, or let answers be longer",
        "data.template",
        "eval.max_new_tokens",
    ),
    "letter missing": _format("ask for the letter", "admit letters only", "train on questions with options"),
    "text for letter": _format("ask for the letter", "admit letters only", "train on questions with options"),
    "wrong language": _wrong_language,
    "yes-bias": _data("train on as many questions with no as with yes", "data.mix"),
    "no for yes": _data("train on as many questions with yes as with no", "data.mix"),
    "long answer": _format(
        "ask for a single word or phrase", "admit the task's answers only", "train on short answers"
    ),
    "cut off": _cut,
    "normalisation": _normalisation,
    "synonym or inflection": _data("accept true synonyms, or train on the words that the answers use", "eval.scorer"),
    "partly right": _data("train on the wordings that most annotators use", "data.mix"),
    "another kind": _format(
        "say how to answer", "admit the task's answers only", "train on more wordings of these questions"
    ),
    "counting": _data("train on counting, at a higher resolution", "data.mix", "assemble --tiles"),
    "colour": _data("train on more colours, and the vision side with them", "data.mix", "optim.projector_lr"),
    "position": _data(
        "train on spatial questions, without mirrored images", "data.mix", "data.shift=0", "assemble --tiles"
    ),
    "plain wrong": _data("train longer, on more images, or at a higher resolution", "optim.epochs", "data.mix"),
}
