"""Glossaries: one answer has one translation."""

from pathlib import Path

import pytest

from shards.errors import BadInput
from shards.translate.glossary import GLOSSARIES, Glossary
from shards.translate.memory import MEMORIES, TranslationMemory


def load(tmp_path: Path, text: str, source: str = "en", target: str = "ru") -> Glossary:
    (tmp_path / "g.tsv").write_text(text, "utf-8")
    return Glossary.load(tmp_path / "g.tsv", source, target)


def test_whole_texts_with_their_case_and_marks() -> None:
    glossary = Glossary.named("", "en", "ru")
    cases = {"yes": "да", "Yes.": "Да.", "NO": "НЕТ", "NO!": "НЕТ!", "light blue": "голубой", "Two": "Два"}
    assert {text: glossary.lookup(text) for text in cases} == cases
    assert [glossary.lookup(text) for text in ("yes it is", "yes <x0/>", "", ".", "yess")] == [None] * 5


def test_the_way_back_takes_the_first_line() -> None:
    glossary = Glossary.named("", "ru", "en")
    cases = {"серый": "gray", "Бирюзовый.": "Teal.", "чёрный": "black", "черный": "black", "ДЕРЕВО": "TREE"}
    assert {text: glossary.lookup(text) for text in cases} == cases


def test_packaged_glossary_agrees_with_the_packaged_memory() -> None:
    memory = TranslationMemory.load(MEMORIES / "easy_vqa.en-ru.tsv", "en", "ru")
    for pairs, glossary in (
        (memory.pairs, Glossary.named("", "en", "ru")),
        (memory.inverse().pairs, Glossary.named("", "ru", "en")),
    ):
        both = {text: glossary.lookup(text) for text in pairs if glossary.lookup(text)}
        assert len(both) >= 12
        assert both == {text: pairs[text] for text in both}


def test_stems_count_from_left_to_right(tmp_path: Path) -> None:
    lines = "en\tru\nred\tкрасный\tкрасн|рыж\ncat\tкот\n"
    there = load(tmp_path, lines)
    assert there.lost_word("Red cats", "рыжие коты") is None
    assert there.lost_word("red, red cat", "голубой кот") == "red"
    assert there.lost_word("redder", "кот") is None
    assert there.version != load(tmp_path, lines.replace("|рыж", "")).version
    assert Glossary.load(tmp_path / "g.tsv", "ru", "en").lost_word("красный", "blue") is None


def test_version_follows_the_entries(tmp_path: Path) -> None:
    first, same = load(tmp_path, "en\tru\na\tб\nc\tг\n"), load(tmp_path, "en\tru\nc\tг\r\na\tб\n")
    assert first.version == same.version != load(tmp_path, "en\tru\na\tв\nc\tг\n").version
    assert Glossary.named("none", "en", "ru") == Glossary.named("", "en", "vi") == Glossary()
    assert len(list(GLOSSARIES.glob("*.tsv"))) >= 1


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("en\tde\na\tb\n", "g.tsv:1"),
        ("en\tru\na\n", "g.tsv:2"),
        ("en\tru\na\tб\nA.\tв\n", "g.tsv:3: 'A.' stands in line 2"),
        ("en\tru\na\t \n", "g.tsv:2"),
    ],
)
def test_bad_glossary_is_named_by_line(tmp_path: Path, text: str, where: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert where in str(caught.value)
    with pytest.raises(BadInput, match="cannot be read"):
        Glossary.named("nothing.tsv", "en", "ru")
