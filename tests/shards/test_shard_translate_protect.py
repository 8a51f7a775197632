"""What no translation may touch, and the shape that a translation gets from its source."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.prompts import prompts
from shards.translate.protect import Segment, placeholders, prompt_lines, protect, restore, straighten
from shards.translate.shape import like

KEPT = [
    "<image>", "</b>", '<img src="a.png">', "<|im_end|>", "`a b`", "$x_1 + y$", r"\(a b\)", r"\frac{a}{b}", "&nbsp;",
    "https://a.org/b_c?d=e", "me.too@mail.example.org", "](pictures/a.png)", "[0.12, 0.30, 0.5, 0.7]", "{name}",
]  # fmt: skip
MARKERS = ["A. ", "B) ", "(c) ", "- ", "* ", "12. ", "(3) ", "# ", "> ", "  - A. "]
WORDS = ["what", "stands", "near", "the Bus?", "Да.", "3 cats"]

line = st.builds(
    lambda marker, parts: marker + " ".join(parts),
    st.sampled_from(["", *MARKERS]),
    st.lists(st.sampled_from(KEPT + WORDS)),
)  # fmt: skip
texts = st.lists(line | st.sampled_from(["```python\nprint('hi there')\n```", "$$\na b\n$$", "", "  \t"])).map(
    "\n".join
)


def shouted(segment: Segment) -> str:
    return straighten(segment.text.upper())


def turned_around(segment: Segment) -> str:
    return " ".join(reversed(segment.text.split(" ")))


def kept_of(text: str) -> list[str]:
    return re.findall("|".join(map(re.escape, sorted(KEPT, key=len, reverse=True))), text)


@given(st.text() | texts)
def test_a_text_is_its_pieces(text: str) -> None:
    pieces = protect(text)
    assert restore(pieces, lambda segment: segment.text) == text
    for piece in pieces:
        if isinstance(piece, Segment):
            assert placeholders(piece.text) == list(range(len(piece.inline)))
            assert piece.text == piece.text.strip() and len(piece.text.splitlines()) == 1


@given(texts)
def test_kept_pieces_survive_an_engine(text: str) -> None:
    out = restore(protect(text), shouted)
    assert kept_of(out) == kept_of(text)
    assert out.upper() == text.upper()
    mixed = restore(protect(text), turned_around)
    assert sorted(kept_of(mixed)) == sorted(kept_of(text))
    for before, after in zip(text.splitlines(), mixed.splitlines(), strict=True):
        marker = next((m for m in sorted(MARKERS, key=len, reverse=True) if before.startswith(m)), "")
        assert after.startswith(marker)


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("<image>\nWhat is it?\nA. a cat\nB. a dog\n", ["What is it?", "a cat", "a dog"]),
        ("Which one: (A) the cat (B) 12 (C) red one", ["Which one:", "the cat", "red one"]),
        ("A. cat B. dog", ["cat", "dog"]),
        ("A: a cat\n[B] a dog\n(C)birds", ["a cat", "a dog", "birds"]),
        ("J. K. Rowling wrote it.", ["J. K. Rowling wrote it."]),
        ("Take vitamins (a) and (b) now.", ["Take vitamins (a) and (b) now."]),
        ("| Name | the price |\n|---|---|", ["Name", "the price"]),
        ("a cat\ta dog   a bird", ["a cat", "a dog", "a bird"]),
        ("What is  the cat|dog?", ["What is  the cat|dog?"]),
        ("Great 😀 photo! 👍🏽", ["Great <x0/> photo!"]),
        ("It costs $5 and $10.", ["It costs $5 and $10."]),
        ("Is x<y and y > z here?", ["Is x<y and y > z here?"]),
        ("see `rm -r` at https://a.b/c.", ["see <x0/> at <x1/>."]),
        ("12\n3.5 %\nA\nB.\n(C)\n—\nA, B\n[1, 2]", []),
        ("是", ["是"]),
        ("before\n~~~\nprint(one)\n\n~~~\nafter", ["before", "after"]),
        ("before\n```\nno end", ["before"]),
    ],
)
def test_segments(text: str, segments: list[str]) -> None:
    assert [piece.text for piece in protect(text) if isinstance(piece, Segment)] == segments


def test_response_format_prompts_have_fixed_translations() -> None:
    there, back = prompt_lines("en", "ru"), prompt_lines("ru", "en")
    for row in prompts().values():
        text = f"<image>\nred\n {row['en']}\n"
        russian = restore(protect(text, there), lambda segment: segment.text)
        assert russian == f"<image>\nred\n {row['ru']}\n"
        assert restore(protect(russian, back), lambda segment: segment.text) == text
    tokens = f"{prompts()['ocr']['en']} STOP, Main street"
    assert protect(tokens, there) == (prompts()["ocr"]["ru"], " STOP, Main street")
    assert prompt_lines("en", "vi") == {}


@pytest.mark.parametrize(
    "unit",
    ["`", "$", r"\(", r"\[", "<a ", "<!--", "<|", "{{", "](", "a@", "[1,", "(a) ", "- ", "http://.", " |", " \t", "😀"],
)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    started = time.monotonic()
    text = unit * (200_000 // len(unit))
    assert restore(protect(text), lambda segment: segment.text) == text
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("source", "translation", "wanted"),
    [
        ("is there a cat?", " Есть ли кошка?\n", "есть ли кошка?"),
        ("A cat", "кошка.", "Кошка"),
        ("A cat.", "кошка", "Кошка."),
        ("STOP HERE!", "стой здесь", "СТОЙ ЗДЕСЬ!"),
        ("USE <x0/> NOW", "возьми <x0/> сейчас", "ВОЗЬМИ <x0/> СЕЙЧАС"),
        ("usa", "США", "США"),
        ('"a cat"', "«Кошка»", "«кошка»"),
        ('He said "no."', "он сказал: «нет».", "Он сказал: «нет»."),
        ("<x0/> is red", "Красный <x0/>", "Красный <x0/>"),
        ("what is up", "Как дела?", "как дела"),
        ("made by Ford", "Ford сделал", "Ford сделал"),
        ("An iPhone.", "iPhone", "iPhone."),
        ("Look here:", "Смотри сюда.", "Смотри сюда:"),
        ("at 5 p.m.", "в 17:00", "в 17:00"),
        ("and so on", "и т. д.", "и т. д."),
        ("The answer is B.", "Ответ — B", "Ответ — B."),
        ("really...", "правда", "правда..."),
        ("Is it?", "是吗？", "是吗？"),
    ],
)  # fmt: skip
def test_shape_of_the_source(source: str, translation: str, wanted: str) -> None:
    assert like(source, translation, "ru") == wanted
    assert like(source, wanted, "ru") == wanted


def test_capitals_that_belong_to_the_language() -> None:
    assert like("dog", "Hund", "de") == "Hund"
    assert like("я думаю", "I think", "en") == "I think"
    assert like("й", "и\u0306", "ru") == "й"
