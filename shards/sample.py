"""The sample: one image, its dialogue and its questions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from shards.errors import BadInput

Role = Literal["user", "assistant", "system"]
ImageExt = Literal["jpg", "png", "webp"]

IMAGE_EXTENSIONS = ("jpg", "png", "webp")
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_MESSAGES = 2000

ROLES = ("user", "assistant", "system")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LANG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


def option_letter(number: int) -> str:
    """The letter of option `number`, counted from 0."""
    return chr(ord("A") + number)


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a message."""

    text: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


@dataclass(frozen=True, slots=True)
class ImagePart:
    """The place of the sample's image in a message."""

    def to_json(self) -> dict[str, Any]:
        return {"type": "image"}


Part = Text | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the dialogue."""

    role: Role
    content: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": [part.to_json() for part in self.content]}


@dataclass(frozen=True, slots=True)
class Question:
    """A question that evaluation asks of the image, with all accepted answers (none where they are not public).

    `options` are the texts of the choices A, B, …, and the answers then are letters. `hint` stands before the
    question. `details` are what the set's own scorer needs besides, untranslated.
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    type: str | None = None
    options: tuple[str, ...] = ()
    hint: str | None = None
    details: dict[str, Any] | None = None

    @property
    def wording(self) -> str:
        """The question as LLaVA 1.5 puts it: the hint before it, one lettered option a line after it."""
        options = [f"{option_letter(i)}. {text}" for i, text in enumerate(self.options)]
        return "\n".join([*([self.hint] if self.hint else []), self.question, *options])

    def to_json(self) -> dict[str, Any]:
        obj = {"question_id": self.question_id, "question": self.question, "answers": list(self.answers)}
        rest = {"type": self.type, "options": list(self.options), "hint": self.hint, "details": self.details}
        return obj | {name: value for name, value in rest.items() if value}


@dataclass(frozen=True, slots=True)
class Sample:
    """A valid sample: making one that is not raises BadInput with its key and field.

    `original` is `{"lang", "messages", "questions"?}` before translation; `translation` is `{"engine", "model",
    "score", ...}`. `image` holds the file's bytes as they came.
    """

    key: str
    id: str
    source: str
    lang: str
    messages: tuple[Message, ...]
    questions: tuple[Question, ...] = ()
    image: bytes | None = None
    image_ext: ImageExt | None = None
    original: dict[str, Any] | None = None
    translation: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not _KEY.fullmatch(self.key):
            raise BadInput(f"sample key {self.key!r:.200}: 1 to 128 letters, digits, _ or - are allowed")
        at = f"sample {self.key!r}, "
        check_text(self.id, at + "id")
        check_text(self.source, at + "source")
        check_lang(self.lang, at + "lang")
        check_messages(self.messages, at + "messages")
        check_questions(self.questions, at + "questions")
        _check_image(self, at)

    def to_json(self) -> dict[str, Any]:
        """The object stored as KEY.json; absent parts are left out."""
        obj: dict[str, Any] = {"id": self.id, "source": self.source, "lang": self.lang, **self.dialogue()}
        if self.original is not None:
            obj["original"] = self.original
        if self.translation is not None:
            obj["translation"] = self.translation
        return obj

    def dialogue(self) -> dict[str, Any]:
        """`{"messages": ..., "questions"?: ...}` as JSON."""
        obj: dict[str, Any] = {"messages": [message.to_json() for message in self.messages]}
        if self.questions:
            obj["questions"] = [question.to_json() for question in self.questions]
        return obj

    @classmethod
    def from_json(cls, key: str, obj: Any, image: bytes | None = None, image_ext: str | None = None) -> "Sample":
        """The sample of a KEY.json object and its image bytes; BadInput names key and field."""
        at = f"sample {key!r:.200}, "
        wanted, allowed = ("id", "source", "lang", "messages"), ("questions", "original", "translation")
        fields = _object(obj, at + "JSON", wanted, allowed)
        return cls(
            key=key,
            id=fields["id"],
            source=fields["source"],
            lang=fields["lang"],
            messages=_parse_messages(fields["messages"], at + "messages"),
            questions=_parse_questions(fields.get("questions", []), at + "questions"),
            image=image,
            image_ext=cast("ImageExt | None", image_ext),
            original=_parse_original(fields, at + "original"),
            translation=_parse_translation(fields, at + "translation"),
        )


def check_text(value: Any, at: str) -> None:
    """BadInput, starting with `at`, unless `value` is a non-empty text of valid Unicode without NUL."""
    if not isinstance(value, str):
        raise BadInput(f"{at}: a text is wanted")
    if not value.strip():
        raise BadInput(f"{at}: a non-empty text is wanted", "text")
    if "\0" in value:
        raise BadInput(f"{at}: NUL bytes are not allowed", "text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"{at}: the text is not valid Unicode", "text") from error


def check_lang(value: Any, at: str) -> None:
    """BadInput unless `value` is a language tag."""
    if not isinstance(value, str) or not _LANG.fullmatch(value):
        raise BadInput(f"{at}: a language tag such as en or ru is wanted")


def check_messages(messages: Sequence[Message], at: str) -> None:
    """BadInput unless the dialogue has messages of known roles, texts that say something, images from the user."""
    if not messages:
        raise BadInput(f"{at}: at least one message is wanted")
    if len(messages) > MAX_MESSAGES:
        raise BadInput(f"{at}: {len(messages)} messages; at most {MAX_MESSAGES} are taken", "limit")
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise BadInput(f"{at}[{i}].role: {message.role!r:.50} is none of {', '.join(ROLES)}")
        if not message.content:
            raise BadInput(f"{at}[{i}].content: at least one part is wanted")
        for j, part in enumerate(message.content):
            if isinstance(part, Text):
                check_text(part.text, f"{at}[{i}].content[{j}].text")
            elif message.role != "user":
                raise BadInput(f"{at}[{i}].content[{j}]: an image stands in a user message only")


def check_questions(questions: Sequence[Question], at: str) -> None:
    """BadInput unless every question has its own id, a text and answers."""
    seen: set[str] = set()
    for i, question in enumerate(questions):
        check_text(question.question_id, f"{at}[{i}].question_id")
        check_text(question.question, f"{at}[{i}].question")
        for name in ("answers", "options"):
            for j, text in enumerate(getattr(question, name)):
                check_text(text, f"{at}[{i}].{name}[{j}]")
        for name in ("type", "hint"):
            if getattr(question, name) is not None:
                check_text(getattr(question, name), f"{at}[{i}].{name}")
        if question.details is not None and not isinstance(question.details, dict):
            raise BadInput(f"{at}[{i}].details: an object is wanted")
        if question.question_id in seen:
            raise BadInput(f"{at}[{i}].question_id: {question.question_id!r:.100} occurs twice")
        seen.add(question.question_id)


def _check_image(sample: Sample, at: str) -> None:
    if (sample.image is None) != (sample.image_ext is None):
        raise BadInput(f"{at}image: bytes and extension are wanted, or neither")
    if sample.image_ext is not None and sample.image_ext not in IMAGE_EXTENSIONS:
        raise BadInput(f"{at}image: {sample.image_ext!r:.50} is none of {', '.join(IMAGE_EXTENSIONS)}")
    named = sum(isinstance(part, ImagePart) for message in sample.messages for part in message.content)
    if named != (sample.image is not None):
        has = "no image" if sample.image is None else "an image"
        raise BadInput(f"{at}messages: they name {named} images and the sample has {has}")


def _object(obj: Any, at: str, wanted: Sequence[str], allowed: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(obj, dict):
        raise BadInput(f"{at}: an object is wanted")
    for name in wanted:
        if name not in obj:
            raise BadInput(f"{at}: the field {name!r} is missing")
    for name in obj:
        if name not in wanted and name not in allowed:
            raise BadInput(f"{at}: the field {name!r:.100} is unknown")
    return obj


def _list(obj: Any, at: str) -> list[Any]:
    if not isinstance(obj, list):
        raise BadInput(f"{at}: a list is wanted")
    return obj


def _parse_messages(obj: Any, at: str) -> tuple[Message, ...]:
    messages = []
    for i, item in enumerate(_list(obj, at)):
        fields = _object(item, f"{at}[{i}]", ("role", "content"))
        content = _list(fields["content"], f"{at}[{i}].content")
        parts = tuple(_parse_part(part, f"{at}[{i}].content[{j}]") for j, part in enumerate(content))
        messages.append(Message(fields["role"], parts))
    return tuple(messages)


def _parse_part(obj: Any, at: str) -> Part:
    kind = obj.get("type") if isinstance(obj, dict) else None
    if kind == "image":
        _object(obj, at, ("type",))
        return ImagePart()
    if kind == "text":
        return Text(_object(obj, at, ("type", "text"))["text"])
    raise BadInput(f"{at}: a part of type text or image is wanted")


def _parse_questions(obj: Any, at: str) -> tuple[Question, ...]:
    questions = []
    for i, item in enumerate(_list(obj, at)):
        fields = _object(
            item, f"{at}[{i}]", ("question_id", "question", "answers"), ("type", "options", "hint", "details")
        )
        answers = tuple(_list(fields["answers"], f"{at}[{i}].answers"))
        options = tuple(_list(fields.get("options", []), f"{at}[{i}].options"))
        rest = {name: fields.get(name) for name in ("type", "hint", "details")}
        questions.append(Question(fields["question_id"], fields["question"], answers, options=options, **rest))
    return tuple(questions)


def _parse_original(sample: dict[str, Any], at: str) -> dict[str, Any] | None:
    if "original" not in sample:
        return None
    fields = _object(sample["original"], at, ("lang", "messages"), ("questions",))
    check_lang(fields["lang"], f"{at}.lang")
    check_messages(_parse_messages(fields["messages"], f"{at}.messages"), f"{at}.messages")
    check_questions(_parse_questions(fields.get("questions", []), f"{at}.questions"), f"{at}.questions")
    return fields


def _parse_translation(sample: dict[str, Any], at: str) -> dict[str, Any] | None:
    if "translation" not in sample:
        return None
    fields = _object(sample["translation"], at, ("engine", "model", "score"))
    check_text(fields["engine"], f"{at}.engine")
    check_text(fields["model"], f"{at}.model")
    score = fields["score"]
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise BadInput(f"{at}.score: a number or null is wanted")
    return fields
