"""What translates texts."""

from collections.abc import Sequence
from typing import Any, Protocol


class Engine(Protocol):
    """A translator of one direction. `model` must change whenever the translations may."""

    name: str
    model: str
    source_lang: str
    target_lang: str

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """One translation a text, in order; None where there is none."""
        ...


def describe(engine: Engine) -> dict[str, Any]:
    """What a translated dataset records of its engine."""
    return {
        "name": engine.name,
        "model": engine.model,
        "source_lang": engine.source_lang,
        "target_lang": engine.target_lang,
    }
