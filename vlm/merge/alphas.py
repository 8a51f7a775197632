"""PEFT's `alpha_pattern`: regular expressions, by whoever wrote the adapter, that give modules their own alpha."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import regex  # type: ignore[import-untyped]

from shards.errors import BadInput, plain

# 300 patterns on 300 modules take less than one; an expression can be written that takes years
_SECONDS = 10
_MOST_PATTERNS, _MOST_LETTERS = 20_000, 500


def alphas(config: Mapping[str, Any], modules: Iterable[str], where: str) -> dict[str, float]:
    """Each module's alpha: of the first pattern that ends its name, else `lora_alpha`; BadInput begins with `where`."""
    default = _number(config.get("lora_alpha"), f"{where}: lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > _MOST_PATTERNS:
        raise BadInput(f"{where}: alpha_pattern: an object of at most {_MOST_PATTERNS} patterns is wanted")
    values = {p: _number(value, f"{where}: alpha_pattern: {plain(p)}") for p, value in patterns.items()}
    compiled = [(_compiled(pattern, where), value) for pattern, value in values.items()]
    until, found = time.monotonic() + _SECONDS, {}
    for module in modules:
        own = (value for pattern, value in compiled if _matches(pattern, module, until, where))
        found[module] = next(own, default)
    return found


def _number(value: Any, where: str) -> float:
    # a whole number may be too large for a float
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise BadInput(f"{where}: a number is wanted, not {plain(repr(value))}")
    return float(value)


def _compiled(pattern: str, where: str) -> Any:
    try:
        # counted repeats in each other would be compiled to gigabytes
        if len(pattern) > _MOST_LETTERS or "{" in pattern:
            raise ValueError(f"at most {_MOST_LETTERS} characters are taken, and no counted repeat")
        # as PEFT puts it: one that contains ) ends the group there too
        return regex.compile(rf"(.*\.)?({pattern})$")
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise BadInput(f"{where}: alpha_pattern: {plain(pattern)} is no usable pattern ({error})") from None


def _matches(pattern: Any, module: str, until: float, where: str) -> bool:
    try:
        return bool(pattern.match(module, timeout=max(until - time.monotonic(), 0.001)))
    except TimeoutError:
        raise BadInput(f"{where}: alpha_pattern takes more than {_SECONDS} s to match the modules' names") from None
