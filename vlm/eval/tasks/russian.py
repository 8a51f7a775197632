"""Whether two Russian answers say the same: ё and е, quotes, dashes, number words and inflection do not count."""

import re
from functools import cache, lru_cache
from typing import Any

from shards.extras import require

_WORD = re.compile(r"[^\W_]+")
_COUNTED = (
    "ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать тринадцать четырнадцать"
    " пятнадцать шестнадцать семнадцать восемнадцать девятнадцать двадцать"
)
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())}
_NUMBERS |= {"тридцать": "30", "сорок": "40", "пятьдесят": "50", "сто": "100", "тысяча": "1000"}


def words(answer: str) -> tuple[str, ...]:
    """Words and numbers in small letters, ё as е; whatever stands between them is gone."""
    return tuple(_WORD.findall(answer.casefold().replace("ё", "е")))


def check_inflection() -> None:
    """BadInput where forms of words cannot be told here."""
    require("pymorphy3", "eval", "scorer russian: inflection")


def same_words(one: str, other: str) -> bool:
    """Whether each word is a form of the other answer's word at its place, or the same number."""
    pairs = words(one), words(other)
    return len(pairs[0]) == len(pairs[1]) and all(
        a == b or _lemmas(a) & _lemmas(b) for a, b in zip(*pairs, strict=True)
    )


@lru_cache(1 << 16)
def _lemmas(word: str) -> frozenset[str]:
    parses = _analyser().parse(word)
    # «банка» in an answer is a jar, and not of the bank
    if any(parse.tag.case == "nomn" for parse in parses):
        parses = [parse for parse in parses if parse.tag.case in ("nomn", None)]
    lemmas = {parse.normal_form.replace("ё", "е") for parse in parses}
    return frozenset(_NUMBERS.get(lemma, lemma) for lemma in lemmas)


@cache
def _analyser() -> Any:
    check_inflection()
    from pymorphy3 import MorphAnalyzer  # type: ignore[import-untyped]

    return MorphAnalyzer(lang="ru")
