"""Translation memory."""

from pathlib import Path

import pytest

from shards.errors import BadInput
from shards.readers.easy_vqa_questions import COLORS, FORMS, SHAPES
from shards.translate.config import TranslateConfig, make_engine
from shards.translate.memory import MEMORIES, TranslationMemory


@pytest.fixture
def memory() -> TranslationMemory:
    return TranslationMemory.load(MEMORIES / "easy_vqa.en-ru.tsv", "en", "ru")


def load(tmp_path: Path, text: str, source: str = "en", target: str = "ru") -> TranslationMemory:
    (tmp_path / "m.tsv").write_text(text, "utf-8")
    return TranslationMemory.load(tmp_path / "m.tsv", source, target)


def test_packaged_memory_covers_easy_vqa_both_ways(memory: TranslationMemory) -> None:
    texts = [*FORMS, *SHAPES, *COLORS, "yes", "no"]
    assert set(memory.pairs) == set(texts)
    inverse = memory.inverse()
    assert [inverse.lookup(memory.lookup(text) or "") for text in texts] == texts
    assert all(memory.pairs[text].endswith("?") for text in FORMS)


def test_packaged_memory_keeps_negation(memory: TranslationMemory) -> None:
    for text, form in FORMS.items():
        asks_for_absence = "правда ли, что" in memory.pairs[text] or "отсутствует" in memory.pairs[text]
        assert asks_for_absence == form.negated, text


def test_lookup_keeps_first_letter_and_period(tmp_path: Path) -> None:
    memory = load(tmp_path, "en\tru\na cat\tкот\nUSA\tСША\n")
    cases = {"a cat": "кот", "A cat": "Кот", "a cat.": "кот.", "A cat.": "Кот.", "USA": "США"}
    assert {text: memory.lookup(text) for text in cases} == cases
    assert [memory.lookup(text) for text in ("a dog", "a  cat", "a cat!", "a CAT", "", ".")] == [None] * 6


def test_memory_turned_around(tmp_path: Path) -> None:
    memory = load(tmp_path, "en\tru\na cat\tкот\n", "ru", "en")
    assert memory.lookup("кот") == "a cat"
    assert (memory.source_lang, memory.target_lang) == ("ru", "en")
    with pytest.raises(BadInput, match="no inverse"):
        load(tmp_path, "en\tru\ncat\tкот\ntomcat\tкот\n", "ru", "en")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "m.tsv:1"),
        ("en\tde\na\tб\n", "m.tsv:1"),
        ("en\tru\na\tб\nb\tв\na\tб\n", "m.tsv:4: 'a' stands in line 2"),
        ("en\tru\na\tб\na\tв\n", "m.tsv:3: 'a' is translated differently in line 2"),
        ("en\tru\na\n", "m.tsv:2"),
        ("en\tru\na\tб\tв\n", "m.tsv:2"),
        ("en\tru\n\n", "m.tsv:2"),
        ("en\tru\na\t \n", "m.tsv:2"),
    ],
)
def test_bad_memory_is_named_by_line(tmp_path: Path, text: str, where: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert where in str(caught.value)


def test_memory_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_bytes(b"en\tru\n\xff\t\xfe\n")
    with pytest.raises(BadInput, match="UTF-8"):
        TranslationMemory.load(tmp_path / "m.tsv", "en", "ru")


def test_memory_by_name_or_file(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("en\tru\na\tб\n")
    assert make_engine(TranslateConfig(memory="easy_vqa.en-ru")).translate(["red", "pink"]) == ["красный", None]
    assert make_engine(TranslateConfig(memory=str(tmp_path / "m.tsv"))).translate(["a"]) == ["б"]
    for memory in ("", "nothing", "missing/easy_vqa.en-ru"):
        with pytest.raises(BadInput, match=r"easy_vqa\.en-ru"):
            make_engine(TranslateConfig(memory=memory))
