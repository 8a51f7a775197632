"""Self-contained HTML pages: no script, no part from elsewhere, every text escaped."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_ROOT = Path(__file__).parent.parent
# Control characters, lone surrogates (no UTF-8 holds them), and marks that turn the direction of what comes after them.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class KeyFigure:
    """A figure of a page's head."""

    value: str
    name: str
    remark: str = ""


@dataclass(frozen=True)
class Share:
    """A row of a table of counts: `part` is its share of the whole, `width` that of the longest bar."""

    name: str
    count: int
    part: float
    width: float


@dataclass(frozen=True)
class Shares:
    """The largest counts of a table; `rest` counts what its `hidden` other rows hold."""

    rows: list[Share]
    hidden: int
    rest: int


def render(template: str, **values: Any) -> str:
    """The HTML of a template below `shards`, which extends pages/page.html."""
    environment = Environment(
        loader=FileSystemLoader(_ROOT),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(count=count, percent=percent, size=size)
    return environment.get_template(template).render(**values)


def shares(counts: Mapping[str, int], shown: int, others: tuple[int, int] = (0, 0)) -> Shares:
    """The first `shown` of counts that are ordered already; `others` are rows left out before and what they hold."""
    whole, longest = sum(counts.values()) + others[1], max(counts.values(), default=0)
    rows = [
        Share(name, number, number / whole if whole else 0.0, number / longest if longest else 0.0)
        for name, number in list(counts.items())[:shown]
    ]
    return Shares(rows, max(0, len(counts) - shown) + others[0], whole - sum(row.count for row in rows))


def count(number: float) -> str:
    """12345 → "12 345"."""
    return f"{number:,.0f}".replace(",", "\u202f")


def brief(number: float) -> str:
    """As `count`, and from ten million as "12.3 M"."""
    return count(number) if number < 1e7 else f"{number / 1e6:,.4g}\u202fM"


def percent(share: float) -> str:
    """0.1234 → "12.3 %"."""
    return f"{share * 100:.1f}\u202f%"


def size(number: float) -> str:
    """Bytes as "999 B", "12.3 kB", "4.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g}\u202f{unit}"
        number /= 1000
    return f"{number:.3g}\u202fTB"


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSAFE.sub("\ufffd", value)
    return value
