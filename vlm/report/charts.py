"""Line charts as numbers for the page's SVG; the template draws them."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlm.report.training import Training

# SVG units, about a CSS pixel each: the drawing, and the plot inside it
WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 54, WIDTH - 18, 10, HEIGHT - 26
_POINTS = 300

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in SVG units."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve: `path` in SVG units; `style` is its CSS class."""

    name: str
    style: str
    path: str


@dataclass(frozen=True)
class Chart:
    """A chart over optimizer steps. `hover` is JSON: [x, y, step, value text] of every point of the first line."""

    title: str
    summary: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    hover: str


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def charts(training: Training) -> list[Chart]:
    """Loss (with evaluation loss, if any), learning rate and tokens per second of a training, as far as known."""
    loss = [(float(s.step), s.loss) for s in training.steps if s.loss is not None]
    rate = [(float(s.step), s.lr) for s in training.steps if s.lr is not None]
    speed = [(float(s.step), s.speed) for s in training.steps if s.speed is not None]
    drawn = []
    if loss:
        thin = _thin(loss)
        evaluation = [(float(step), value) for step, value in training.evaluations]
        lines = [("loss", "raw", thin), ("smoothed", "smooth", smooth(thin))]
        drawn.append(chart("Loss", [*lines, ("evaluation loss", "eval", evaluation)], lambda v: f"{v:.4g}"))
    if rate:
        drawn.append(chart("Learning rate", [("learning rate", "smooth", _thin(rate))], lambda v: f"{v:.3g}"))
    if speed:
        drawn.append(chart("Tokens per second", [("tokens/s", "smooth", _thin(speed))], lambda v: f"{v:,.0f}"))
    return drawn


def chart(title: str, series: list[tuple[str, str, Points]], write: Callable[[float], str]) -> Chart:
    """Lines (name, CSS class, points) over the steps, at least one of them with points; `write` says a value."""
    series = [line for line in series if line[2]]
    every = [point for _, _, points in series for point in points]
    steps, values = [x for x, _ in every], [y for _, y in every]
    y_marks = _marks(min(0.0, *values), max(values))
    x = _Scale(0.0, max(*steps, 1.0), LEFT, RIGHT)
    y = _Scale(y_marks[0], y_marks[-1], BOTTOM, TOP)
    first = series[0][2]
    return Chart(
        title=title,
        summary=f"{title} from {write(first[0][1])} at step {first[0][0]:.0f} to {write(first[-1][1])} "
        f"at step {first[-1][0]:.0f}",
        lines=tuple(Line(name, style, _path(points, x, y)) for name, style, points in series),
        x_ticks=tuple(Tick(x(mark), _short(mark)) for mark in _marks(x.low, x.high) if mark <= x.high),
        y_ticks=tuple(Tick(y(mark), _short(mark)) for mark in y_marks),
        hover=json.dumps([[x(step), y(value), round(step), write(value)] for step, value in first]),
    )


def _path(points: Points, x: _Scale, y: _Scale) -> str:
    if len(points) == 1:  # a line of no length shows as a dot under round caps
        points = [points[0], points[0]]
    return "M" + "L".join(f"{x(step):g} {y(value):g}" for step, value in points)


def _thin(points: Points) -> Points:
    """At most 300 points: means of neighbours."""
    size = math.ceil(len(points) / _POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def smooth(points: Points) -> Points:
    """Means over the points around each: a trailing mean would lag behind a falling loss."""
    half = len(points) // 40
    smoothed = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        around = [value for _, value in points[i - reach : i + reach + 1]]
        smoothed.append((step, sum(around) / len(around)))
    return smoothed


def _marks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, four or so."""
    span = max(high - low, 1e-12) if high > low else 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 4 >= span * 0.999)
    first = math.floor(low / step)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.10g}" if value == 0 or abs(value) >= 0.001 else f"{value:.3g}"
