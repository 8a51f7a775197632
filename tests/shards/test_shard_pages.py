"""The pages of a dataset's figures and of a translation's quality: what they hold, and that nothing runs in them."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shards.errors import BadInput
from shards.files import read_json, write_json
from shards.sample import Question, Sample
from shards.stat import stat
from shards.stat.page import write_stat_page
from shards.translate.chain import Failure, Outcome
from shards.translate.checks import Figures
from shards.translate.quality import Quality, QualityTally
from shards.translate.quality_file import read_quality
from shards.translate.report import write_quality_page
from shards.translate.translator import Rejection

MakeSample = Callable[..., Sample]
MakeDataset = Callable[..., Path]

EVIL = '<script>alert(1)</script>"\'&<b title="x">\u202egnihtemos\u2069'
SHOWN = EVIL.replace("\u202e", "\ufffd").replace("\u2069", "\ufffd")
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """A page's texts by the element they stand in; fails on what is left open, and on what could load or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.classes: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []
        assert "default-src 'none'" in self.html

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look_at(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look_at(tag, attrs)

    def _look_at(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "link", "img", "form")
        assert not [name for name, _ in attrs if name in ("src", "href") or name.startswith("on")]
        self.classes += (dict(attrs).get("class") or "").split()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts).replace("\u202f", " ")


@pytest.fixture
def quality() -> Quality:
    """Eight texts: one hostile, one long, one refused by the first engine, one by both."""
    figures = Figures("ru", 0.99, 1.0, 1.25)
    refused = Failure("hf", "numbers", f"3 lost {EVIL}", f"плохо {EVIL}")
    tally = QualityTally()
    tally.add_all(
        [
            *(Outcome(f"text {i}", f"текст {i}", "hf", "m", figures, f"text {i}", 97.0 + i / 10) for i in range(4)),
            Outcome(EVIL, f"{EVIL} перевод", "hf", "m", figures, EVIL, 12.34),
            Outcome("long " * 100, "длинно " * 2000, "hf", "m", replace(figures, ratio=7.0, language="uk")),
            Outcome("number 3", "число 3", "server", "m", figures, failures=(refused,)),
            Outcome("lost", None, "server", "m", failures=(refused, Failure("server", "untranslated", "none"))),
        ]
    )
    return tally.result(
        "en", "ru", 97, 1234, [Rejection(f"k{i}", "lost", "untranslated", "none", ()) for i in range(3)]
    )


def test_stat_page_holds_the_figures(make_sample: MakeSample, make_dataset: MakeDataset, tmp_path: Path) -> None:
    samples = [
        replace(make_sample(i, with_image=i > 2), source=EVIL, questions=(Question(f"q{i}", "why?", ("so",), EVIL),))
        for i in range(7)
    ]
    counted = stat(make_dataset(samples))
    counted = replace(counted, characters=12_345_678, rejected=4321, types={**counted.types, "t": 1}, images=4)
    write_stat_page(counted, tmp_path / "stat.html")
    page = Page(tmp_path / "stat.html")
    assert ("b", "7") in page.texts and "3 without an image" in page.text
    assert page.text.count(SHOWN) == 2
    assert "of 12 345 678 characters" in page.text and "4 321 rows" in page.text
    assert "6x4 4 100.0 %" in page.text
    assert ("title", "1: 7 samples") in page.texts
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.html)
    write_stat_page(counted, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page.html


def test_shares_of_sizes_are_of_all_images(make_dataset: MakeDataset, tmp_path: Path) -> None:
    counted = stat(make_dataset(3))
    sizes = {f"{i}x{i}": 2 for i in range(1, 21)}
    shapes = replace(counted.image_shapes, distinct_sizes=60)
    write_stat_page(replace(counted, images=80, image_sizes=sizes, image_shapes=shapes), tmp_path / "stat.html")
    text = Page(tmp_path / "stat.html").text
    assert "1x1 2 2.5 %" in text
    assert "48 others 56" in text
    assert "Sizes of images" in text


@pytest.mark.parametrize("samples", [0, 1])
def test_stat_page_of_next_to_nothing(make_dataset: MakeDataset, tmp_path: Path, samples: int) -> None:
    counted = stat(make_dataset(1))
    if not samples:
        none = replace(counted.turns_per_sample, count=0, bins=())
        counted = replace(counted, samples=0, images=0, types={}, languages={}, sources={})
        counted = replace(counted, turns_per_sample=none, characters_per_sample=none)
    write_stat_page(counted, tmp_path / "stat.html")
    page = Page(tmp_path / "stat.html")
    assert ("No samples." in page.text) == (samples == 0)
    assert ("The one size, in pixels" in page.text) == (samples == 1)


def test_quality_page_holds_the_figures(quality: Quality, tmp_path: Path) -> None:
    write_json(tmp_path / "quality.json", quality.to_json())
    assert read_quality(tmp_path / "quality.json") == quality
    write_quality_page(tmp_path / "quality.json", tmp_path / "quality.html")
    page = Page(tmp_path / "quality.html")
    for figure in ("8 distinct texts", "87.5 % translated", "3.0 % of the samples rejected", "97 median chrF"):
        assert figure in page.text
    assert "85.7 % in ru of 7 identified" in page.text
    assert "server 1 14.3 % 1 Refused: untranslated 1" in page.text
    assert "hf 6 85.7 % 2 Refused: numbers 2" in page.text
    assert ("title", "95 to 100: 4 texts") in page.texts
    assert ("title", "10 to 15: 1 texts") in page.texts
    assert ("title", "3 or more: 1 texts") in page.texts
    assert ("title", "1.2 to 1.4: 6 texts") in page.texts
    write_quality_page(quality, tmp_path / "same.html")
    assert (tmp_path / "same.html").read_text() == page.html


def test_quality_page_shows_hostile_texts_as_they_are(quality: Quality, tmp_path: Path) -> None:
    write_quality_page(quality, tmp_path / "quality.html")
    page = Page(tmp_path / "quality.html")
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.html)
    for text in (SHOWN, f"{SHOWN} перевод", f"плохо {SHOWN}", f"3 lost {SHOWN}", "12.3"):
        assert any(text == shown for _, shown in page.texts), text
    # source and back translation in the languages' own directions, apart from what is around them
    assert page.html.count('dir="auto"') == page.classes.count("text")


def test_long_texts_are_folded_and_cut(quality: Quality, tmp_path: Path) -> None:
    write_quality_page(quality, tmp_path / "quality.html")
    page = Page(tmp_path / "quality.html")
    assert page.classes.count("long") == 2
    assert "500 characters" in page.text and "14 000 characters" in page.text
    assert ("span", ("long " * 100)[:280].strip() + "…") in page.texts
    assert "10 000 more characters are left out" in page.text
    longest = max((text for element, text in page.texts if element == "p"), key=len)
    assert longest == ("длинно " * 2000)[:4000].strip()


def test_quality_page_of_nothing(tmp_path: Path) -> None:
    write_quality_page(QualityTally().result("en", "ru", 0, 0, []), tmp_path / "quality.html")
    text = Page(tmp_path / "quality.html").text
    assert "No sample was rejected." in text and "No text was translated." in text


def test_quality_page_of_text_that_is_no_unicode(quality: Quality, tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    write_json(path, quality.to_json())
    path.write_text(path.read_text().replace('"text 1"', '"text \\ud800 \\u0000"'))
    write_quality_page(path, tmp_path / "quality.html")
    assert "text \ufffd \ufffd" in Page(tmp_path / "quality.html").text


def without_texts(obj: dict[str, Any]) -> None:
    del obj["texts"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda obj: obj.update(format=1), "format 2"),
        (without_texts, "no 'texts'"),
        (lambda obj: obj.update(texts="many"), "texts"),
        (lambda obj: obj.update(texts=-1), "texts"),
        (lambda obj: obj.update(texts=10**400), "texts"),
        (lambda obj: obj.update(texts=True), "texts"),
        (lambda obj: obj.update(rejected_share=None), "rejected_share"),
        (lambda obj: obj.update(worst={}), "worst"),
        (lambda obj: obj["worst"][0].update(source=None), r"worst\[0\]\.source"),
        (lambda obj: obj["length_ratio"].update(counts=[1]), "length_ratio is no histogram"),
        (lambda obj: obj["script_share"].update(edges=[]), "script_share is no histogram"),
        (lambda obj: obj["engines"].update(x=3), r"engines\.x"),
        (lambda obj: obj["chrf"]["percentiles"].update({"5": 1e300}), "percentiles"),
    ],
)
def test_bad_quality_files(
    quality: Quality, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], named: str
) -> None:
    path = tmp_path / "quality.json"
    write_json(path, quality.to_json())
    obj = read_json(path)
    spoil(obj)
    write_json(path, obj)
    with pytest.raises(BadInput, match=rf"quality\.json.*{named}"):
        write_quality_page(path, tmp_path / "quality.html")
    assert not (tmp_path / "quality.html").exists()
