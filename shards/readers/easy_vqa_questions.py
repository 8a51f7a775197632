"""The closed grammar of easy-VQA: its 107 questions and what an answer says about the image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Target = Literal["shape", "color"]

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

_IS_THERE = ("is there a {}?", "is there a {} in the image?", "is a {} present?", "does the image contain a {}?")
_IS_THERE_NOT = (
    "is there not a {}?",
    "is there not a {} in the image?",
    "is no {} present?",
    "does the image not contain a {}?",
)
_WHAT_SHAPE = ("what shape is in the image?", "what shape does the image contain?", "what shape is present?")
_WHAT_COLOR = ("what color is the {}?", "what is the color of the {}?")


@dataclass(frozen=True)
class QuestionForm:
    """What a question asks for and what it takes for granted (`given_...`) or offers (`offered`)."""

    asks: Target
    offered: str | None = None
    negated: bool = False
    given_shape: str | None = None
    given_color: str | None = None

    @property
    def type(self) -> str:
        """One of the six question types."""
        if self.offered is None:
            return self.asks
        return f"{self.asks} yes/no, negated" if self.negated else f"{self.asks} yes/no"

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that the question admits."""
        if self.offered is not None:
            return ("yes", "no")
        return SHAPES if self.asks == "shape" else COLORS


def _forms() -> Iterator[tuple[str, QuestionForm]]:
    things: list[tuple[str, Target, str]] = [(shape, "shape", shape) for shape in SHAPES]
    things += [(f"{color} shape", "color", color) for color in COLORS]
    for phrase, asks, offered in things:
        for pattern in _IS_THERE:
            yield pattern.format(phrase), QuestionForm(asks, offered)
        for pattern in _IS_THERE_NOT:
            yield pattern.format(phrase), QuestionForm(asks, offered, negated=True)
    for pattern in _WHAT_COLOR:
        yield pattern.format("shape"), QuestionForm("color")
        for shape in SHAPES:
            yield pattern.format(shape), QuestionForm("color", given_shape=shape)
    for question in _WHAT_SHAPE:
        yield question, QuestionForm("shape")
    for color in COLORS:
        yield f"what is the {color} shape?", QuestionForm("shape", given_color=color)


FORMS: dict[str, QuestionForm] = dict(_forms())


class Conclusions:
    """What remains possible for an image after some of its answered questions."""

    def __init__(self) -> None:
        self.shapes = set(SHAPES)
        self.colors = set(COLORS)

    def learn(self, form: QuestionForm, answer: str) -> None:
        """Take in one answered question."""
        if form.given_shape:
            self.shapes &= {form.given_shape}
        if form.given_color:
            self.colors &= {form.given_color}
        possible = self.shapes if form.asks == "shape" else self.colors
        if form.offered is None:
            possible &= {answer}
        elif (answer == "yes") != form.negated:
            possible &= {form.offered}
        else:
            possible -= {form.offered}

    @property
    def contradictory(self) -> bool:
        """No image fits the answers."""
        return not self.shapes or not self.colors

    def caption(self) -> str | None:
        """ "a red circle", "a red shape", "a circle", or None when neither is certain."""
        shape = next(iter(self.shapes)) if len(self.shapes) == 1 else None
        color = next(iter(self.colors)) if len(self.colors) == 1 else None
        if shape is None and color is None:
            return None
        return " ".join(word for word in ("a", color, shape or "shape") if word)
