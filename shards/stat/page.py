"""The counts over a dataset as one self-contained page."""

from pathlib import Path

from shards.errors import BadInput
from shards.files import write_atomic
from shards.pages.charts import Chart, columns, histogram, size_map
from shards.pages.page import KeyFigure, brief, count, percent, render, shares, size
from shards.stat.run import DatasetStat
from shards.stat.spread import Spread

_SHOWN = 20
_SIZES = 12


def write_stat_page(stat: DatasetStat, path: Path | str) -> None:
    """Write the page whole; the same counts give the same bytes. BadInput when there is no writing to `path`."""
    try:
        write_atomic(path, stat_page(stat))
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from error


def stat_page(stat: DatasetStat) -> str:
    """The page's HTML."""
    lengths = [("Turns", stat.turns_per_sample), ("Characters", stat.characters_per_sample)]
    lengths = [*([("Tokens", stat.tokens.per_sample)] if stat.tokens else []), *reversed(lengths)]
    return render(
        "stat/page.html",
        title=f"{stat.name}: dataset",
        kicker="Dataset",
        heading=stat.name,
        sub=stat.source,
        figures=_figures(stat),
        stat=stat,
        lengths=lengths,
        length_charts=[_lengths(name, of) for name, of in lengths],
        image_charts=_image_charts(stat),
        aspects=shares(stat.image_shapes.aspects, _SHOWN),
        sizes=shares(stat.image_sizes, _SIZES, _other_sizes(stat)),
        languages=shares(stat.languages, _SHOWN),
        sources=shares(stat.sources, _SHOWN),
        types=shares(stat.types, _SHOWN),
        about=_about(stat),
    )


def _figures(stat: DatasetStat) -> list[KeyFigure]:
    figures = [
        KeyFigure(brief(stat.samples), "samples", f"{count(stat.text_only)} without an image"),
        KeyFigure(brief(stat.images), "images", size(stat.image_bytes)),
        KeyFigure(brief(stat.questions), "questions", f"{count(len(stat.types))} types"),
        KeyFigure(brief(stat.turns), "turns", f"{stat.turns_per_sample.mean:.1f} a sample"),
    ]
    if stat.tokens:
        mean = f"{stat.tokens.per_sample.mean:.0f} a sample"
        figures.append(KeyFigure(brief(stat.tokens.per_sample.total), "tokens", mean))
        figures.append(KeyFigure(percent(stat.tokens.supervised), "of the tokens", "in answers"))
    else:
        figures.append(KeyFigure(percent(stat.supervised_characters), "of the characters", "in answers"))
    return figures


def _lengths(name: str, of: Spread) -> Chart:
    if not of.count:
        note = "No samples."
    elif of.min == of.max:
        note = f"All have {count(of.max)}."
    else:
        note = f"Half have at most {count(of.p50)}, 99 in 100 at most {count(of.p99)}, the longest {count(of.max)}."
    return histogram(f"{name} a sample", columns(of.bins), "samples", note)


def _image_charts(stat: DatasetStat) -> list[Chart]:
    shapes = stat.image_shapes
    if shapes.distinct_sizes < 2:
        return []
    where = "Width to the right, height upwards, in pixels; the stronger, the more images; square ones lie on the line."
    half = f"Half have at most {count(shapes.pixels.p50)}, the largest {count(shapes.pixels.max)}."
    return [
        size_map("Sizes of images", shapes.cells, where),
        histogram("Pixels an image", columns(shapes.pixels.bins), "images", half),
    ]


def _other_sizes(stat: DatasetStat) -> tuple[int, int]:
    """The sizes that are not among the most frequent ones, and their images."""
    return stat.image_shapes.distinct_sizes - len(stat.image_sizes), stat.images - sum(stat.image_sizes.values())


def _about(stat: DatasetStat) -> list[tuple[str, str]]:
    formats = ", ".join(f"{count(number)} {name}" for name, number in stat.image_shapes.formats.items())
    rows = [
        ("Split", stat.split),
        ("Licence", stat.licence),
        ("Shards", f"{count(stat.shards)}, {size(stat.bytes)} with their indexes"),
        ("Images", f"{size(stat.image_bytes)}: {formats}" if formats else "none"),
        ("Samples as JSON", size(stat.json_bytes)),
        ("Rejected", f"{count(stat.rejected)} rows of the source"),
        ("Duplicates", f"{count(stat.duplicates)} questions asked before of the same image"),
        ("Text in answers", f"{percent(stat.supervised_characters)} of {count(stat.characters)} characters"),
    ]
    if stat.tokens:
        share = f"{percent(stat.tokens.supervised)} of {count(stat.tokens.per_sample.total)} tokens"
        rows.append(("Tokens in answers", f"{share}, without chat template and image"))
        rows.append(("Tokenizer", f"{stat.tokens.tokenizer}, {count(stat.tokens.vocabulary)} in its vocabulary"))
    return rows
