"""What the texts of a finished translation look like, in figures."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shards.sample import Sample
from shards.translate.translator import texts_of


@dataclass(frozen=True)
class Quality:
    """`texts` counts occurrences; the other figures are over distinct texts.

    `cyrillic_share` is that of Cyrillic letters among all letters of the translations; `length_ratio_mean` is the
    mean of translation length ÷ source length in characters.
    """

    texts: int
    distinct: int
    untranslated: int
    rejected_samples: int
    cyrillic_share: float
    length_ratio_mean: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(samples: Iterable[Sample], rejected: Sequence[dict[str, str]]) -> Quality:
    """Figures of translated samples, which carry their `original`, and of the rejected ones (`{"key", "text"}`)."""
    texts = 0
    distinct: dict[str, str] = {}
    for sample in samples:
        pairs = list(zip(texts_of(_original(sample)), texts_of(sample), strict=True))
        texts += len(pairs)
        distinct.update(pairs)
    letters = [char for translation in distinct.values() for char in translation if char.isalpha()]
    ratios = [len(translation) / len(text) for text, translation in distinct.items()]
    return Quality(
        texts=texts,
        distinct=len(distinct),
        untranslated=len({line["text"] for line in rejected}),
        rejected_samples=len(rejected),
        cyrillic_share=_share(sum(map(_is_cyrillic, letters)), len(letters)),
        length_ratio_mean=_share(sum(ratios), len(ratios)),
    )


def _original(sample: Sample) -> Sample:
    fields = {"id": sample.id, "source": sample.source, **(sample.original or {})}
    return Sample.from_json(sample.key, fields, sample.image, sample.image_ext)


def _is_cyrillic(char: str) -> bool:
    return unicodedata.name(char, "").split(" ")[0] == "CYRILLIC"


def _share(part: float, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
