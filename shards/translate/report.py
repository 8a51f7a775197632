"""quality.json as one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.files import write_atomic
from shards.pages.charts import Chart, Column, histogram
from shards.pages.page import KeyFigure, brief, count, percent, render, shares
from shards.translate.checks import KINDS
from shards.translate.quality import Example, Histogram, Quality
from shards.translate.quality_file import read_quality

_SHOWN = 20
_UNFOLDED = 12
_PREVIEW = 280
_LONGEST = 4000


@dataclass(frozen=True)
class Passage:
    """A text on the page: `preview` stands in its place until it is unfolded; `hidden` counts characters left out."""

    label: str
    lang: str
    text: str
    preview: str
    length: int
    hidden: int


@dataclass(frozen=True)
class Card:
    """An example: its passages side by side, and what is to be said of it."""

    passages: list[Passage]
    engine: str
    chrf: float | None
    reason: str | None


@dataclass(frozen=True)
class EngineRow:
    """An engine's share of the texts, and what it was asked for in vain."""

    name: str
    translated: int
    part: float
    failed: int
    kinds: str


def write_quality_page(quality: Quality | Path | str, path: Path | str) -> None:
    """Write the page of a Quality, or of a quality.json (BadInput when it is none), whole."""
    write_atomic(path, quality_page(quality if isinstance(quality, Quality) else read_quality(quality)))


def quality_page(quality: Quality) -> str:
    """The page's HTML."""
    return render(
        "translate/report.html",
        title=f"Translation {quality.source_lang} to {quality.target_lang}: quality",
        kicker="Quality of a translation",
        heading=f"{quality.source_lang} → {quality.target_lang}",
        sub=f"{count(quality.samples)} samples kept; {count(quality.occurrences)} texts, those of rejected samples too",
        quality=quality,
        figures=_figures(quality),
        charts=_charts(quality),
        engines=_engines(quality),
        rejected=shares(quality.rejected_by_kind, _SHOWN),
        failures=shares(quality.failures, _SHOWN),
        languages=shares(quality.languages, _SHOWN),
        worst=[_card(example, quality) for example in quality.worst],
        unfolded=_UNFOLDED,
        examples={kind: [_card(one, quality) for one in examples] for kind, examples in quality.examples.items()},
        kinds=KINDS,
    )


def _figures(quality: Quality) -> list[KeyFigure]:
    translated = quality.texts - quality.untranslated
    figures = [
        KeyFigure(brief(quality.texts), "distinct texts", f"{brief(quality.occurrences)} texts in all"),
        KeyFigure(percent(_share(translated, quality.texts)), "translated", f"{brief(quality.untranslated)} are not"),
        KeyFigure(percent(quality.rejected_share), "of the samples rejected", brief(quality.rejected_samples)),
    ]
    if (median := quality.chrf.percentiles.get("50")) is not None:
        compared = f"{brief(quality.chrf.histogram.n)} translated back"
        figures.append(KeyFigure(f"{median:.0f}", "median chrF", compared))
    if quality.length_ratio.mean is not None:
        figures.append(KeyFigure(f"{quality.length_ratio.mean:.2f}", "length ÷ source", "mean, in characters"))
    if known := sum(quality.languages.values()):
        right = quality.languages.get(quality.target_lang.split("-")[0].lower(), 0)
        figures.append(KeyFigure(percent(right / known), f"in {quality.target_lang}", f"of {brief(known)} identified"))
    return figures


def _charts(quality: Quality) -> list[Chart]:
    chrf, ratio, script = quality.chrf.histogram, quality.length_ratio, quality.script_share
    low, median = (quality.chrf.percentiles.get(name) for name in ("5", "50"))
    known = low is not None and median is not None
    note = f"Five in 100 have at most {low:.0f}, half at most {median:.0f}." if known else ""
    drawn = [
        ("chrF of back translations", chrf, 5, False, note),
        ("Length ÷ length of the source", ratio, 2, True, _mean(ratio)),
        ("Share of letters in the script", script, 1, False, _mean(script)),
    ]
    return [
        histogram(title, _columns(of, merged, beyond), "texts", remark)
        for title, of, merged, beyond, remark in drawn
        if of.n
    ]


def _mean(of: Histogram) -> str:
    return "" if of.mean is None else f"Mean {of.mean:.2f} over {count(of.n)} texts."


def _columns(of: Histogram, merged: int, beyond: bool) -> list[Column]:
    """One bar for every `merged` bins; the last bin is one of its own that lies `beyond`, or goes to the one before."""
    starts = list(range(0, len(of.edges) - 1, merged)) or [0]
    ends = [*starts[1:], len(of.edges) - 1 if beyond else len(of.edges)]
    every = max(1, len(starts) // 5)
    bars = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        name = f"{of.edges[start]:g} to {of.edges[min(end, len(of.edges) - 1)]:g}"
        bars.append(Column(sum(of.counts[start:end]), name, f"{of.edges[start]:g}" if i % every == 0 else ""))
    last = Column(of.counts[-1], f"{of.edges[-1]:g} or more", "more", centred=True, beyond=True)
    return [*bars, last] if beyond else bars


def _engines(quality: Quality) -> list[EngineRow]:
    translated = sum(engine.translated for engine in quality.engines.values())
    return [
        EngineRow(
            name=name,
            translated=engine.translated,
            part=_share(engine.translated, translated),
            failed=sum(engine.failed.values()),
            kinds=", ".join(f"{kind} {count(number)}" for kind, number in engine.failed.items()),
        )
        for name, engine in quality.engines.items()
    ]


def _card(example: Example, quality: Quality) -> Card:
    texts: Sequence[tuple[str, str, str | None]] = (
        ("Source", quality.source_lang, example.source),
        ("Translation", quality.target_lang, example.translation),
        ("Back translation", quality.source_lang, example.back),
    )
    passages = [_passage(label, lang, text) for label, lang, text in texts if text is not None]
    return Card(passages, example.engine, example.chrf, example.reason)


def _passage(label: str, lang: str, text: str) -> Passage:
    preview = text if len(text) <= _PREVIEW else text[:_PREVIEW].rstrip() + "…"
    return Passage(label, lang, text[:_LONGEST], preview, len(text), max(0, len(text) - _LONGEST))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
