"""Histograms and a map of image sizes as numbers for a page's SVG; parts.html draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shards.pages.page import count
from shards.stat.image_sizes import SizeCell
from shards.stat.spread import Bin

# SVG units, about a CSS pixel each: the drawing, and the plot inside it
WIDTH, LEFT, RIGHT, TOP = 360, 48, 346, 12
_BOTTOM, _MAP_BOTTOM, _UNDER_PLOT = 174, 260, 26
_WIDEST_BAR = 44.0
_WIDEST_CELL = 22.0
_NARROWEST_LABEL = 34.0
_THINNEST = 1.5
_LABELS = 7


@dataclass(frozen=True)
class Column:
    """One bar to draw. `tick`, if any, stands under its left edge, or its middle if `centred`.

    `beyond` sets the bar apart from the others, as wider than they.
    """

    count: int
    name: str
    tick: str = ""
    centred: bool = False
    beyond: bool = False


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in SVG units."""

    at: float
    label: str


@dataclass(frozen=True)
class Box:
    """A rectangle in SVG units; `text` is what it says under the pointer, `style` its CSS class."""

    x: float
    y: float
    width: float
    height: float
    text: str
    style: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Chart:
    """Rectangles over axes; `summary` says in words what they show, `line` is an SVG path or empty.

    The plot is `plot` (left, top, right, bottom) in a drawing of `size` (width, height).
    """

    title: str
    summary: str
    note: str
    boxes: tuple[Box, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line: str
    plot: tuple[int, int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        return WIDTH, self.plot[3] + _UNDER_PLOT


def columns(bins: Sequence[Bin]) -> list[Column]:
    """Bars of a histogram of whole numbers, some labelled; a last bin wider than the first lies beyond."""
    width = bins[0].high - bins[0].low + 1 if bins else 1
    every = next(n for n in (1, 2, 5, 10) if len(bins) <= n * _LABELS)
    drawn = []
    for one in bins:
        beyond = one is bins[-1] and one is not bins[0] and one.high - one.low >= width
        name = count(one.low) if one.low == one.high else f"{count(one.low)} to {count(one.high)}"
        labelled = beyond or one.low // width % every == 0
        tick = ("more" if beyond else short(one.low)) if labelled else ""
        drawn.append(Column(one.count, name, tick, centred=beyond or width == 1, beyond=beyond))
    return drawn


def histogram(title: str, drawn: Sequence[Column], unit: str, note: str = "") -> Chart:
    """Bars of equal width; `unit` is what they count, in the plural."""
    marks = _marks(max((column.count for column in drawn), default=0))
    scale = (_BOTTOM - TOP) / marks[-1]
    slot = min((RIGHT - LEFT) / max(len(drawn) + 0.5, 1), _WIDEST_BAR)
    boxes, ticks = [], []
    for i, column in enumerate(drawn):
        x = LEFT + slot * (i + 0.5 * column.beyond)
        height = max(column.count * scale, _THINNEST * (column.count > 0))
        text = f"{column.name}: {count(column.count)} {unit}"
        style = "beyond" if column.beyond else "usual"
        boxes.append(Box(_at(x + 0.5), _at(_BOTTOM - height), _at(slot - 1), _at(height), text, style))
        if column.tick:
            ticks.append(Tick(_at(x + slot / 2 * column.centred), column.tick))
    fullest = max(drawn, key=lambda column: column.count, default=None)
    return Chart(
        title=title,
        summary=f"{title}: most {unit} at {fullest.name}" if fullest else f"{title}: nothing to show",
        note=note,
        boxes=tuple(boxes),
        x_ticks=_apart(ticks),
        y_ticks=tuple(Tick(_at(_BOTTOM - mark * scale), short(mark)) for mark in marks),
        line="",
        plot=(LEFT, TOP, RIGHT, _BOTTOM),
    )


def size_map(title: str, cells: Sequence[SizeCell], note: str = "") -> Chart:
    """A map of at least one size over logarithmic axes of one scale; square sizes lie on its line."""
    spans = [(*map(math.log2, cell.width), *map(math.log2, cell.height)) for cell in cells]
    left, low = min(span[0] for span in spans), min(span[2] for span in spans)
    right, high = max(span[1] for span in spans), max(span[3] for span in spans)
    cell = spans[0][1] - spans[0][0]
    octave = min((RIGHT - LEFT) / (right - left), (_MAP_BOTTOM - TOP) / (high - low), _WIDEST_CELL / cell)
    bottom = math.ceil(TOP + (high - low) * octave)

    def place(x: float, y: float) -> tuple[float, float]:
        return _at(LEFT + (x - left) * octave), _at(bottom - (y - low) * octave)

    most = max(cell.count for cell in cells)
    boxes = []
    for of, (x0, x1, y0, y1) in zip(cells, spans, strict=True):
        text = f"{_sides(of.width)} × {_sides(of.height)} pixels: {count(of.count)} images"
        opacity = round(0.2 + 0.8 * math.sqrt(of.count / most), 3)
        boxes.append(Box(*place(x0, y1), _at((x1 - x0) * octave), _at((y1 - y0) * octave), text, "usual", opacity))
    start, stop = max(left, low), min(right, high)
    return Chart(
        title=title,
        summary=f"{title}: widths from {2**left:.0f} to {2**right:.0f}, heights from {2**low:.0f} to {2**high:.0f}",
        note=note,
        boxes=tuple(boxes),
        x_ticks=_apart([Tick(place(power, low)[0], short(2**power)) for power in _powers(left, right)]),
        y_ticks=tuple(Tick(place(left, power)[1], short(2**power)) for power in _powers(low, high)),
        line="M{} {}L{} {}".format(*place(start, start), *place(stop, stop)) if stop > start else "",
        plot=(LEFT, TOP, RIGHT, bottom),
    )


def short(value: float) -> str:
    """12000 → "12k"."""
    for least, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / divisor:.4g}{unit}"
    return f"{value:.10g}"


def _at(place: float) -> float:
    return round(place, 2)


def _apart(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """Those that can be read: each keeps away from the one after it."""
    kept: list[Tick] = []
    for tick in reversed(ticks):
        if not kept or kept[-1].at - tick.at >= _NARROWEST_LABEL:
            kept.append(tick)
    return tuple(reversed(kept))


def _marks(high: float) -> list[float]:
    """Round whole numbers from 0 to at least `high`, four or so."""
    power = 10.0 ** max(0, math.floor(math.log10(max(high, 1) / 4)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4 >= high * 0.999)
    return [i * step for i in range(max(1, math.ceil(high / step - 1e-9)) + 1)]


def _powers(low: float, high: float) -> range:
    return range(math.ceil(low - 1e-6), math.floor(high + 1e-6) + 1)


def _sides(side: tuple[float, float]) -> str:
    low, high = math.ceil(side[0]), math.ceil(side[1]) - 1
    return f"{low} to {high}" if high > low else f"{low}"
