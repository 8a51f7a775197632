"""What the rows of a Hugging Face dataset are, told by the names of their columns."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shards.errors import BadInput
from shards.readers.alpaca import alpaca_messages
from shards.readers.conversations import Conversations, one_image, place_image, read_message, row_id
from shards.readers.dialogue import text_field
from shards.readers.images import ImageFolder
from shards.readers.llava_images import load_image
from shards.readers.sharegpt import sharegpt_messages
from shards.sample import Message, Question, Sample, Text, check_text

Make = Callable[[Conversations, int, dict[str, Any], ImageFolder | None], Sample]

_IMAGE = frozenset({"image", "images"})
# they say where a row comes from, not what it says; "type" goes to the sample's source
_ABOUT = frozenset({"id", "type", "source", "category", "dataset", "model", "topic", "url", "lang", "language"})


@dataclass(frozen=True)
class Form:
    """A set of columns: `needed` are all there, and no other than these and `optional`."""

    name: str
    needed: frozenset[str]
    make: Make = field(repr=False)
    optional: frozenset[str] = frozenset()


def find_form(columns: Sequence[str], at: str) -> Form:
    """The form of these columns; BadInput, starting with `at`, names them and what is known."""
    for form in FORMS:
        if form.needed <= set(columns) <= form.needed | form.optional | _ABOUT:
            return form
    known = "; ".join(" + ".join(sorted(form.needed)) for form in FORMS)
    raise BadInput(f"{at}: columns {', '.join(columns):.300} are of no known form ({known}); rename or remove columns")


def _dialogue(conversations: Conversations, number: int, fields: dict[str, Any], folder: ImageFolder | None) -> Sample:
    cell = one_image(fields)
    messages = sharegpt_messages(fields, cell is not None, unmarked=True)
    return conversations.sample(number, fields, messages, _image(cell, folder))


def _question(conversations: Conversations, number: int, fields: dict[str, Any], folder: ImageFolder | None) -> Sample:
    """One question, asked in training with its answer, or the one that most people gave, and in evaluation."""
    answers = _answers(fields)
    answer = fields.get("answer") or (Counter(answers).most_common(1)[0][0] if answers else None)
    messages = [read_message("user", text_field(fields, "question"), "question")]
    if answer is not None:
        messages.append(read_message("assistant", answer, "answer"))
    cell = one_image(fields)
    messages = place_image(messages, "question", cell is not None, unmarked=True)
    text = "\n".join(part.text for part in messages[0].content if isinstance(part, Text))
    check_text(text, "question")
    question = Question(row_id(fields, ("question_id", "id"), number), text, answers, fields.get("question_type"))
    return conversations.sample(number, fields, messages, _image(cell, folder), (question,))


def _answers(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """All accepted answers, each once in "answer" or in a list of texts or of VQAv2's `{"answer", ...}`."""
    if "answers" not in fields:
        return (text_field(dict(fields), "answer"),)
    given = fields["answers"]
    if not isinstance(given, list):
        raise BadInput(f"field 'answers': a list is wanted, not {given!r:.50}")
    answers: list[str] = []
    for i, one in enumerate(given):
        answer: Any = one.get("answer") if isinstance(one, dict) else one
        check_text(answer, f"answers[{i}]")
        answers.append(answer)
    return tuple(answers)


def _instruction(
    conversations: Conversations, number: int, fields: dict[str, Any], folder: ImageFolder | None
) -> Sample:
    return conversations.sample(number, fields, alpaca_messages(fields))


def _caption(conversations: Conversations, number: int, fields: dict[str, Any], folder: ImageFolder | None) -> Sample:
    """The image alone asks, as in LLaVA's first stage."""
    cell = one_image(fields)
    if cell is None:
        raise BadInput("the row has no image", "image-missing")
    caption = text_field(fields, "caption" if "caption" in fields else "text")
    messages: list[Message] = [read_message("user", [{"type": "image"}], "image")]
    messages.append(read_message("assistant", caption, "caption"))
    return conversations.sample(number, fields, place_image(messages, "caption", True), _image(cell, folder))


def _image(cell: Any, folder: ImageFolder | None) -> bytes | None:
    return None if cell is None else load_image(cell, folder)


_ASKED = _IMAGE | {"answers", "question_id", "question_type", "image_id"}

FORMS = (
    Form("dialogue", frozenset({"conversations"}), _dialogue, _IMAGE | {"system"}),
    Form("dialogue", frozenset({"messages"}), _dialogue, _IMAGE | {"system"}),
    Form("question about an image", frozenset({"question", "answer", "image"}), _question, _ASKED),
    Form("question about an image", frozenset({"question", "answers", "image"}), _question, _ASKED),
    # an image_id without an image would make a question about nothing
    Form("question", frozenset({"question", "answer"}), _question, frozenset({"answers", "question_id"})),
    Form("question", frozenset({"question", "answers"}), _question, frozenset({"question_id"})),
    Form("instruction", frozenset({"instruction", "output"}), _instruction, frozenset({"input", "system", "history"})),
    Form("caption", frozenset({"image", "caption"}), _caption, frozenset({"image_id"})),
    Form("caption", frozenset({"image", "text"}), _caption, frozenset({"image_id"})),
)
