"""quality.json: what the texts of a finished translation look like, in figures and examples.

The dataclasses are its schema. A text here is a segment: a line, or a part of one, as the engines get it, with `<x0/>`
for what stands inside and is not translated. Figures are over distinct texts unless they say otherwise.
"""

import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from shards.translate.chain import Failure, Outcome
from shards.translate.translator import Rejection

FORMAT = 2

_WORST = 50
_EXAMPLES = 20


@dataclass
class Histogram:
    """`counts[i]` values lie in [`edges[i]`, `edges[i + 1]`); the last bin holds all that is larger."""

    edges: list[float]
    counts: list[int] = field(default_factory=list)
    n: int = 0
    mean: float | None = None

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * len(self.edges)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value of at least `edges[0]`."""
        self.counts[max(i for i, edge in enumerate(self.edges) if value >= edge)] += 1
        self.n += 1
        self._sum += value
        self.mean = round(self._sum / self.n, 4)

    def percentile(self, share: float) -> float | None:
        """Lower edge of the bin in which the value lies that `share` of all do not exceed."""
        seen = 0
        for edge, count in zip(self.edges, self.counts, strict=True):
            seen += count
            if count and seen >= math.ceil(share * self.n):
                return edge
        return None


@dataclass(frozen=True)
class Likeness:
    """chrF of back translations against their sources, 0 to 100, of all that were compared, also those not taken.

    `percentiles`: "5", "25", "50", "75", "95" → whole points, rounded down.
    """

    histogram: Histogram
    percentiles: dict[str, float | None]


@dataclass(frozen=True)
class EngineCount:
    """Texts whose translation was taken from an engine, and by kind those that it was asked for in vain."""

    translated: int
    failed: dict[str, int]


@dataclass(frozen=True)
class Example:
    """A text side by side with its translation; `kind` and `reason` say why it was not taken, None if it was."""

    source: str
    translation: str | None
    back: str | None
    chrf: float | None
    engine: str
    kind: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Quality:
    """The whole file.

    `occurrences` counts texts of all samples as often as they stand there (a whole message, question or answer is one
    here), `untranslated` texts that no engine translated. `rejected_by_kind` counts samples; `failures` counts
    refusals of an engine's translation, also where a later engine's was taken. `script_share` is the share of letters
    in the target language's script, `length_ratio` translation ÷ source in characters, `languages` what was
    identified where a text was long enough. `worst` are taken translations, the most doubtful first; `examples` are
    translations not taken, by kind.
    """

    source_lang: str
    target_lang: str
    samples: int
    rejected_samples: int
    rejected_share: float
    rejected_by_kind: dict[str, int]
    occurrences: int
    texts: int
    untranslated: int
    engines: dict[str, EngineCount]
    failures: dict[str, int]
    languages: dict[str, int]
    script_share: Histogram
    length_ratio: Histogram
    chrf: Likeness
    worst: list[Example]
    examples: dict[str, list[Example]]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class QualityTally:
    """Collects outcomes in flat memory; those of a text that was seen before do not count."""

    def __init__(self) -> None:
        self.texts = self.untranslated = 0
        self.translated: Counter[str] = Counter()
        self.failed: dict[str, Counter[str]] = defaultdict(Counter)
        self.languages: Counter[str] = Counter()
        self.script = Histogram([round(i / 20, 2) for i in range(21)])
        self.ratio = Histogram([round(i / 10, 1) for i in range(31)])
        self.chrf = Histogram([float(i) for i in range(101)])
        self.examples: dict[str, list[Example]] = defaultdict(list)
        self._worst: list[tuple[float, str, Example]] = []

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        """Count the distinct ones of `outcomes`."""
        for outcome in _distinct(outcomes):
            self._add(outcome)

    def _add(self, outcome: Outcome) -> None:
        self.texts += 1
        for failure in outcome.failures:
            self.failed[failure.engine][failure.kind] += 1
            if failure.chrf is not None:
                self.chrf.add(failure.chrf)
            if len(self.examples[failure.kind]) < _EXAMPLES:
                self.examples[failure.kind].append(_failed(outcome, failure))
        if outcome.translation is None:
            self.untranslated += 1
            return
        self.translated[outcome.engine] += 1
        if outcome.chrf is not None:
            self.chrf.add(outcome.chrf)
        if (figures := outcome.figures) is not None:
            self.ratio.add(figures.ratio)
            if figures.script is not None:
                self.script.add(figures.script)
            if figures.language is not None:
                self.languages[figures.language] += 1
        self._note(outcome)

    def _note(self, outcome: Outcome) -> None:
        """Keep the most doubtful ones; among equals the first in the order of their sources."""
        example = Example(outcome.source, outcome.translation, outcome.back, outcome.chrf, outcome.engine)
        self._worst.append((-_doubt(outcome), outcome.source, example))
        if len(self._worst) >= 20 * _WORST:
            self._worst = self._most_doubtful()

    def _most_doubtful(self) -> list[tuple[float, str, Example]]:
        return sorted(self._worst, key=lambda noted: noted[:2])[:_WORST]

    def result(
        self, source_lang: str, target_lang: str, samples: int, occurrences: int, rejected: Iterable[Rejection]
    ) -> Quality:
        """The figures of `samples` translated samples and of those that were rejected."""
        kinds = Counter(rejection.kind for rejection in rejected)
        engines = sorted(self.translated.keys() | self.failed.keys())
        percentiles = {str(share): self.chrf.percentile(share / 100) for share in (5, 25, 50, 75, 95)}
        return Quality(
            source_lang=source_lang,
            target_lang=target_lang,
            samples=samples,
            rejected_samples=kinds.total(),
            rejected_share=round(kinds.total() / max(samples + kinds.total(), 1), 6),
            rejected_by_kind=_by_count(kinds),
            occurrences=occurrences,
            texts=self.texts,
            untranslated=self.untranslated,
            engines={name: EngineCount(self.translated[name], _by_count(self.failed[name])) for name in engines},
            failures=_by_count(sum(self.failed.values(), Counter())),
            languages=_by_count(self.languages),
            script_share=self.script,
            length_ratio=self.ratio,
            chrf=Likeness(self.chrf, percentiles),
            worst=[example for _, _, example in self._most_doubtful()],
            examples=dict(sorted(self.examples.items())),
        )


def _doubt(outcome: Outcome) -> float:
    """0 for what raises none: the worst of unlikeness, letters of other scripts, and length."""
    doubts = [0.0]
    if outcome.chrf is not None:
        doubts.append(1 - outcome.chrf / 100)
    if (figures := outcome.figures) is not None:
        doubts.append(1 - (1.0 if figures.script is None else figures.script))
        if figures.ratio > 0:
            doubts.append(min(abs(math.log2(figures.ratio)) / 4, 1.0))
    return round(max(doubts), 4)


def _failed(outcome: Outcome, failure: Failure) -> Example:
    return Example(
        outcome.source,
        failure.translation,
        failure.back,
        failure.chrf,
        failure.engine,
        failure.kind,
        failure.reason,
    )


def _distinct(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The first outcome of every source. What was seen stands in a temporary file, however much it is."""
    seen = sqlite3.connect("")
    try:
        seen.execute("CREATE TABLE seen (source TEXT PRIMARY KEY) WITHOUT ROWID")
        for outcome in outcomes:
            if seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (outcome.source,)).rowcount:
                yield outcome
    finally:
        seen.close()


def _by_count(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
