"""Dialogues as LLaVA, ShareGPT and OpenAI write them, made into samples."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import BadInput
from shards.readers.base import ReaderOptions
from shards.readers.images import image_extension
from shards.sample import MAX_MESSAGES, ImagePart, Message, Part, Question, Role, Sample, Text, check_text

MARKER = "<image>"
"where the image stands in a text"

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_FIELDS = (("from", "value"), ("role", "content"))
# a message's own picture would be a second source of images beside the row's
_IMAGE_FIELDS = ("image", "image_url", "url", "path", "bytes", "base64")
_KIND = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True, slots=True)
class Conversations:
    """How the rows of one set become samples, whose keys are STEM-000000000, STEM-000000001, …"""

    stem: str
    source: str
    lang: str

    @classmethod
    def of(cls, reader: str, lang: str, options: ReaderOptions) -> "Conversations":
        """Those of a reader whose set is published in `lang`."""
        return cls(options.stem(reader), reader, options.lang or lang)

    def sample(
        self,
        number: int,
        fields: Mapping[str, Any],
        messages: Sequence[Message],
        image: bytes | None = None,
        questions: Sequence[Question] = (),
    ) -> Sample:
        """The sample of row `number`; its id is the row's, and a row's "type" follows the source, as SOURCE/TYPE."""
        kind = fields.get("type")
        kind = f"/{kind}" if isinstance(kind, str) and _KIND.fullmatch(kind) else ""
        return Sample(
            key=f"{self.stem}-{number:09d}",
            id=row_id(fields, ("id",), number),
            source=self.source + kind,
            lang=self.lang,
            messages=tuple(messages),
            questions=tuple(questions),
            image=image,
            image_ext=None if image is None else image_extension(image),
        )


def row_id(fields: Mapping[str, Any], names: Sequence[str], number: int) -> str:
    """The first of the fields that is there, a text or a whole number, as text; else the number of the row."""
    for name in names:
        value = fields.get(name)
        if value is None or value == "":
            continue
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise BadInput(f"field {name!r}: a text or a whole number is wanted, not {value!r:.50}")
        return str(value)
    return str(number)


def one_image(fields: Mapping[str, Any]) -> Any:
    """What "image" or "images" of a row names: a file name, a table's cell, or None; BadInput for several."""
    cells: list[Any] = []
    for name in ("image", "images"):
        value = fields.get(name)
        cells += value if isinstance(value, list) else [value]
    cells = [cell for cell in cells if not _is_empty(cell)]
    if len(cells) > 1:
        raise BadInput(f"the row has {len(cells)} images; a sample has one")
    return cells[0] if cells else None


def read_dialogue(value: Any, at: str, image: bool, unmarked: bool = False) -> list[Message]:
    """The messages of a list of turns `{"from", "value"}` or `{"role", "content"}`; BadInput names the field `at`.

    They alternate and end with the assistant; a system text may stand first. As in LLaVA, an answer before the first
    question is dropped. `image` and `unmarked` as in `place_image`.
    """
    messages = [read_message(role, content, f"{at}[{i}]") for i, (role, content) in enumerate(_turns(value, at))]
    system, rest = (messages[:1], messages[1:]) if messages[:1] and messages[0].role == "system" else ([], messages)
    if rest and rest[0].role == "assistant":
        rest = rest[1:]
    for i, message in enumerate(rest):
        wanted = ("user", "assistant")[i % 2]
        if message.role != wanted:
            turn = len(messages) - len(rest) + i
            raise BadInput(f"{at}[{turn}]: a turn of the {message.role} where one of the {wanted} is wanted")
    if not rest or rest[-1].role != "assistant":
        raise BadInput(f"{at}: a dialogue that ends with the assistant is wanted")
    return place_image([*system, *rest], at, image, unmarked)


def read_message(role: Any, content: Any, at: str) -> Message:
    """One message; `<image>` in its text becomes the place of the image.

    The space and the newline next to it belong to the marker and go with it. `content` may also be a list of parts
    `{"type": "text", "text"}` and `{"type": "image"}`.
    """
    if not isinstance(role, str) or role not in _ROLES:
        raise BadInput(f"{at}: the role {role!r:.50} is none of {', '.join(_ROLES)}")
    parts: list[Part] = []
    for text in _contents(content, at):
        parts += [ImagePart()] if text is None else _split(text)
    if not parts:
        raise BadInput(f"{at}: an empty text", "text")
    return Message(_ROLES[role], tuple(parts))


def place_image(messages: Sequence[Message], at: str, image: bool, unmarked: bool = False) -> list[Message]:
    """The messages, checked: one place for the row's image, in the user's words, or none if it has none.

    With `unmarked` an image that no message places comes before the first question.
    """
    places = [m for m in messages for part in m.content if isinstance(part, ImagePart)]
    wrong = [m.role for m in places if m.role != "user"]
    if wrong:
        raise BadInput(f"{at}: {MARKER} in the words of the {wrong[0]}")
    if image and not places and unmarked:
        first = next(i for i, m in enumerate(messages) if m.role == "user")
        marked = Message("user", (ImagePart(), *messages[first].content))
        return [*messages[:first], marked, *messages[first + 1 :]]
    if len(places) != image:
        has = "one image" if image else "no image"
        raise BadInput(f"{at}: {len(places)} times {MARKER} and the row has {has}")
    return list(messages)


def with_system(fields: Mapping[str, Any], messages: Sequence[Message]) -> list[Message]:
    """The messages after the row's "system" text, which may be missing, null or empty; their own one goes before it."""
    system = fields.get("system")
    if system is None or system == "" or messages[0].role == "system":
        return list(messages)
    return [*place_image([read_message("system", system, "system")], "system", False), *messages]


def _is_empty(cell: Any) -> bool:
    if isinstance(cell, dict):
        return not cell.get("bytes") and not cell.get("path")
    return cell is None or cell == ""


def _turns(value: Any, at: str) -> list[tuple[Any, Any]]:
    """(role, content) of every turn; a table may hold them as one object of two lists."""
    if isinstance(value, dict):
        who, what = _names(value, at)
        columns = value[who], value[what]
        if not all(isinstance(column, list) for column in columns) or len(columns[0]) != len(columns[1]):
            raise BadInput(f"field {at!r}: two lists of one length are wanted")
        turns = list(zip(*columns, strict=True))
    elif isinstance(value, list):
        turns = []
        for i, turn in enumerate(value[: MAX_MESSAGES + 1]):
            who, what = _names(turn, f"{at}[{i}]")
            turns.append((turn[who], turn[what]))
    else:
        raise BadInput(f"field {at!r}: a list of turns is wanted, not {value!r:.50}")
    if len(turns) > MAX_MESSAGES:
        raise BadInput(f"{at}: more than {MAX_MESSAGES} turns", "limit")
    return turns


def _names(turn: Any, at: str) -> tuple[str, str]:
    for who, what in _FIELDS:
        if isinstance(turn, dict) and who in turn and what in turn:
            return who, what
    raise BadInput(f'{at}: {{"from", "value"}} or {{"role", "content"}} is wanted, not {turn!r:.50}')


def _contents(content: Any, at: str) -> list[str | None]:
    """Texts, and None for the image."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    found: list[str | None] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            if any(part.get(name) for name in _IMAGE_FIELDS):
                raise BadInput(f"{at}: an image inside a message; it should be the row's own field")
            found.append(None)
        elif kind == "text":
            if part.get("text") != "":
                check_text(part.get("text"), at)
            found.append(part["text"])
        else:
            raise BadInput(f"{at}: a part of type text or image is wanted, not {part!r:.50}")
    return found


def _split(text: str) -> list[Part]:
    pieces = text.split(MARKER)
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        if i > 0:
            parts.append(ImagePart())
            piece = piece.lstrip(" \t").removeprefix("\r").removeprefix("\n")
        if i < len(pieces) - 1:
            piece = piece.rstrip(" \t").removesuffix("\n").removesuffix("\r")
        if piece.strip():
            parts.append(Text(piece))
    return parts
