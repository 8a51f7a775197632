"""Samples to samples in another language, each distinct text translated once."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from shards.sample import Message, Part, Question, Sample, Text
from shards.translate.engine import Engine


def texts_of(sample: Sample) -> Iterator[str]:
    """Every text of a sample that is translated, in stored order."""
    for message in sample.messages:
        yield from (part.text for part in message.content if isinstance(part, Text))
    for question in sample.questions:
        yield question.question
        yield from question.answers


class Translator:
    """An engine and what it has said so far."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._known: dict[str, str | None] = {}

    def look_up(self, samples: Iterable[Sample]) -> None:
        """Have the engine translate, in one call, the texts of `samples` that are new."""
        new = dict.fromkeys(text for sample in samples for text in texts_of(sample) if text not in self._known)
        if not new:
            return
        for text, translation in zip(new, self.engine.translate(list(new)), strict=True):
            self._known[text] = translation if translation and translation.strip() else None

    def missing(self, sample: Sample) -> str | None:
        """The first text of a looked-up sample that has no translation."""
        return next((text for text in texts_of(sample) if self._known[text] is None), None)

    def translate(self, sample: Sample) -> Sample:
        """A looked-up sample with nothing missing, translated; the source dialogue goes to `original`."""
        return replace(
            sample,
            lang=self.engine.target_lang,
            messages=tuple(map(self._message, sample.messages)),
            questions=tuple(map(self._question, sample.questions)),
            original={"lang": sample.lang, **sample.dialogue()},
            translation={"engine": self.engine.name, "model": self.engine.model, "score": None},
        )

    def _message(self, message: Message) -> Message:
        return replace(message, content=tuple(map(self._part, message.content)))

    def _part(self, part: Part) -> Part:
        return Text(self._text(part.text)) if isinstance(part, Text) else part

    def _question(self, question: Question) -> Question:
        answers = tuple(map(self._text, question.answers))
        return replace(question, question=self._text(question.question), answers=answers)

    def _text(self, text: str) -> str:
        translation = self._known[text]
        if translation is None:
            raise ValueError(f"{text!r:.200} has no translation")
        return translation
