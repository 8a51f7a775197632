"""One row of a raw set to a packed sample: all the work that needs no other row."""

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from shards.build.encoding import Encoding
from shards.errors import BadInput, Kind
from shards.readers.base import Draft
from shards.sample import Message, Part, Question, Sample, Text
from shards.tar import Packed, pack
from shards.tokens import TokenCounter

Digest = bytes
"16 bytes that stand for a key, a question id or a question about an image"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row that became a sample, and what other samples may have in common with it.

    `asked` holds the text of each question with the digest of image and text; for a sample without questions, all
    that its user says.
    """

    place: str
    packed: Packed
    lang: str
    key: Digest
    question_ids: dict[Digest, str]
    asked: tuple[tuple[Digest, str], ...]

    def digests(self) -> Iterator[Digest]:
        """All digests above."""
        yield self.key
        yield from self.question_ids
        yield from (digest for digest, _ in self.asked)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that became no sample, and why."""

    place: str
    kind: Kind
    reason: str

    def to_json(self) -> dict[str, str]:
        return {"place": self.place, "kind": self.kind, "reason": self.reason}


@dataclass(frozen=True)
class TokenLimit:
    """How many tokens the texts of a sample's messages may have."""

    counter: TokenCounter
    most: int

    def check(self, sample: Sample) -> None:
        """BadInput when they have more."""
        texts = [part.text for message in sample.messages for part in message.content if isinstance(part, Text)]
        tokens = sum(self.counter.count(texts))
        if tokens > self.most:
            raise BadInput(f"sample {sample.key!r}: {tokens} tokens of text; at most {self.most} are taken", "limit")


def prepare(
    draft: Draft, encoding: Encoding, decode: bool = False, limit: TokenLimit | None = None
) -> Prepared | Rejected:
    """Make the sample of a draft, check and pack it; `decode` looks at every pixel of its image."""
    place = _writable(draft.place)
    try:
        sample = normalised(draft.make())
        if limit is not None:
            limit.check(sample)
        if sample.image is not None and not encoding.keeps:
            image, ext = encoding.apply(sample.image)
            sample = replace(sample, image=image, image_ext=ext)
        packed = pack(sample, decode)
    except BadInput as error:
        return Rejected(place, error.kind, _writable(str(error)))
    return Prepared(
        place,
        packed,
        sample.lang,
        _digest(b"key", sample.key),
        {_digest(b"question_id", question.question_id): question.question_id for question in sample.questions},
        tuple(_asked(sample)),
    )


def _writable(text: str) -> str:
    """`text` with escapes for what UTF-8 cannot hold, such as the bytes of a file name in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def normalised(sample: Sample) -> Sample:
    """The sample with all its texts in Unicode's form NFC: one spelling of each letter."""
    if all(unicodedata.is_normalized("NFC", text) for text in _texts(sample)):
        return sample
    messages = (Message(message.role, tuple(map(_nfc_part, message.content))) for message in sample.messages)
    return replace(sample, messages=tuple(messages), questions=tuple(map(_nfc_question, sample.questions)))


def _texts(sample: Sample) -> Iterator[str]:
    for message in sample.messages:
        yield from (part.text for part in message.content if isinstance(part, Text))
    for question in sample.questions:
        yield question.question
        yield question.hint or ""
        yield from question.answers
        yield from question.options


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _nfc_part(part: Part) -> Part:
    return Text(_nfc(part.text)) if isinstance(part, Text) else part


def _nfc_question(question: Question) -> Question:
    return replace(
        question,
        question=_nfc(question.question),
        answers=tuple(map(_nfc, question.answers)),
        options=tuple(map(_nfc, question.options)),
        hint=None if question.hint is None else _nfc(question.hint),
    )


def _asked(sample: Sample) -> Iterator[tuple[Digest, str]]:
    image = b"" if sample.image is None else hashlib.sha256(sample.image).digest()
    said = (
        part.text
        for message in sample.messages
        if message.role == "user"
        for part in message.content
        if isinstance(part, Text)
    )
    for text in [question.question for question in sample.questions] or ["\n".join(said)]:
        yield _digest(b"asked", text, image), text


def _digest(what: bytes, text: str, image: bytes = b"") -> Digest:
    # `person` keeps the three kinds apart; with no image or 32 bytes of digest before it, no two texts run together
    return hashlib.blake2b(image + text.encode("utf-8"), digest_size=16, person=what).digest()
