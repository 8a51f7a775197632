"""What sizes and shapes the images of a dataset have."""

import math
from collections import Counter
from dataclasses import dataclass, field

from shards.stat.spread import Spread, spread

_CELLS_PER_OCTAVE = 4
# Longer side ÷ shorter side; between them lie the shapes of cameras and screens: 4:3, 3:2, 16:9.
_SQUARE = 1.05
_SHAPES = (1.4, 1.6, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class SizeCell:
    """Images of width[0] ≤ width < width[1] pixels and the same for the height; four cells to a doubling."""

    width: tuple[float, float]
    height: tuple[float, float]
    count: int


@dataclass(frozen=True, slots=True)
class ImageShapes:
    """`aspects` runs from tall to wide, without the empty ones; `cells` is a map of width and height, sparse."""

    distinct_sizes: int
    formats: dict[str, int]
    pixels: Spread
    aspects: dict[str, int]
    cells: tuple[SizeCell, ...]


@dataclass
class SizeTally:
    """Counts of (width, height) and of file formats."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)

    def update(self, other: "SizeTally") -> None:
        """Add the counts of another one."""
        self.sizes.update(other.sizes)
        self.formats.update(other.formats)

    def top(self, n: int) -> dict[str, int]:
        """The `n` most frequent sizes as "640x480", most frequent first, the smaller first of equals."""
        ranked = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))
        return {f"{width}x{height}": count for (width, height), count in ranked[:n]}

    def shapes(self) -> ImageShapes:
        """The counts, summed up."""
        pixels: Counter[int] = Counter()
        aspects: Counter[str] = Counter()
        cells: Counter[tuple[int, int]] = Counter()
        for (width, height), count in self.sizes.items():
            pixels[width * height] += count
            aspects[_aspect(width, height)] += count
            cells[_cell(width), _cell(height)] += count
        return ImageShapes(
            distinct_sizes=len(self.sizes),
            formats=dict(sorted(self.formats.items(), key=lambda item: (-item[1], item[0]))),
            pixels=spread(pixels),
            aspects={name: aspects[name] for name in _aspect_names() if aspects[name]},
            cells=tuple(SizeCell(_sides(i), _sides(j), count) for (i, j), count in sorted(cells.items())),
        )


def _cell(side: int) -> int:
    return math.floor(math.log2(side) * _CELLS_PER_OCTAVE + 1e-9)


def _sides(cell: int) -> tuple[float, float]:
    low, high = (2 ** (i / _CELLS_PER_OCTAVE) for i in (cell, cell + 1))
    return round(low, 1), round(high, 1)


def _aspect(width: int, height: int) -> str:
    ratio = max(width, height) / min(width, height)
    if ratio < _SQUARE:
        return "square"
    return _shape("wide" if width > height else "tall", next((limit for limit in _SHAPES if ratio < limit), None))


def _shape(way: str, limit: float | None) -> str:
    if limit is None:
        return f"{way}, {_SHAPES[-1]:g} or more"
    return f"{way}, below {limit:g}"


def _aspect_names() -> list[str]:
    limits = (*_SHAPES, None)
    wide, tall = ([_shape(way, limit) for limit in limits] for way in ("wide", "tall"))
    return [*reversed(tall), "square", *wide]
