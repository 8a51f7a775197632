"""Numbers of a text that its translation lost, and such as it made up.

A number may stand in digits on one side and in words on the other ("3rd floor", "третий этаж"), with other marks
between its digits (1,234.5 and 1 234,5), in Roman digits, or as the hour of another clock (5 p.m., 17:00).
"""

import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).parent / "glossaries" / "numerals.tsv"
# in the first part of a number with thousands, then in any other; a fraction keeps its zeros
_DIGITS = re.compile(r"[1-9]\d{0,2}(?:[.,\u0020\u00a0\u202f]\d{3})+(?!\d)|(?<=\d[.,])\d+(?![.,]?\d)|(?P<whole>\d+)")
_CLOCK = re.compile(r"(?<!\d)(1[0-2]|0?[1-9])(?::\d\d)?\s*([ap])\.?m\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
# those whose cardinal, the first word of the table, is always a number: one is also a pronoun
_COUNTED = range(2, 13)


def lost_numbers(source: str, translation: str, source_lang: str, target_lang: str) -> tuple[list[str], list[str]]:
    """(numbers of `source` that `translation` has not, numbers that only `translation` has)."""
    there, here = _digits(source), _digits(translation)
    lost, new = there - here, here - there
    _same_hours(source, lost, new)
    _same_hours(translation, new, lost)
    said, saying = _Words(translation, target_lang), _Words(source, source_lang)
    left = [number for number in lost.elements() if not said.has(number)]
    counted = [number for number in saying.counted() if number not in here and not said.has(number)]
    return sorted(left + counted), sorted(number for number in new.elements() if not saying.has(number))


def _digits(text: str) -> Counter[str]:
    """Numbers as ASCII digits; fractions and parts of a date count one by one."""
    numbers = []
    for found in _DIGITS.finditer(text):
        number = "".join(str(unicodedata.digit(char)) for char in found[0] if char.isdigit())
        numbers.append((number.lstrip("0") or "0") if found["whole"] else number)
    return Counter(numbers)


def _same_hours(text: str, own: Counter[str], others: Counter[str]) -> None:
    """Take away the hours that `text` names by a clock of twelve and the other text by one of twenty-four."""
    for hour, half in _CLOCK.findall(text):
        at = int(hour) % 12 + (12 if half in "pP" else 0)
        if own[str(int(hour))] and others[str(at)]:
            own[str(int(hour))] -= 1
            others[str(at)] -= 1
        others["0"] = max(others["0"] - 1, 0)  # 17:00


class _Words:
    """Numbers that a text has in words."""

    def __init__(self, text: str, lang: str) -> None:
        self.table = _table().get(lang, {})
        self.roman = frozenset(_WORD.findall(text))
        self.words = [word.casefold().replace("ё", "е") for word in _WORD.findall(text)]

    def has(self, number: str) -> bool:
        """Whether a number stands there in words, in whatever order, or in Roman digits."""
        return len(number) < 10 and self._has(int(number))

    def _has(self, value: int) -> bool:
        if 0 < value < 40 and _roman(value) in self.roman:
            return True
        if value in self.table:
            return any(self.table[value].fullmatch(word) for word in self.words)
        bases = (1_000_000, 1000, value // 100 * 100, 100, value // 10 * 10)
        return any(self._composed(value, base) for base in bases if base in self.table and 0 < base < value)

    def _composed(self, value: int, base: int) -> bool:
        """Whether `base`, how often it is counted and what is left stand there."""
        times, rest = divmod(value, base)
        return self._has(base) and (times == 1 or self._has(times)) and (not rest or self._has(rest))

    def counted(self) -> list[str]:
        """Small numbers that stand alone: not the two of twenty-two or two hundred."""
        numeral = [any(form.fullmatch(word) for form in self.table.values()) for word in self.words]
        names = {form.pattern.split("|")[0]: str(value) for value, form in self.table.items() if value in _COUNTED}
        alone = [not any(numeral[max(i - 1, 0) : i] + numeral[i + 1 : i + 2]) for i in range(len(numeral))]
        return [names[word] for word, by_itself in zip(self.words, alone, strict=True) if by_itself and word in names]


def _roman(value: int) -> str:
    ones = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    return "X" * (value // 10) + ones[value % 10]


@cache
def _table() -> dict[str, dict[int, re.Pattern[str]]]:
    """Language → value → what its words look like."""
    header, *rows = (line.split("\t") for line in _TABLE.read_text("utf-8").splitlines())
    return {
        lang: {int(row[0]): re.compile(row[column].replace("*", r"\w*")) for row in rows if row[column]}
        for column, lang in enumerate(header[1:], 1)
    }
