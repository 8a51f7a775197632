"""Response-format prompts: their wording, and where they are missing."""

import pytest

from shards.errors import BadInput
from shards.prompts import prompt, prompts


def test_english_is_the_wording_of_llava() -> None:
    assert {name: texts["en"] for name, texts in prompts().items()} == {
        "word-or-phrase": "Answer the question using a single word or phrase.",
        "word": "Answer in one word.",
        "letter": "Answer with the option's letter from the given choices directly.",
        "caption": "Provide a one-sentence caption for the provided image.",
        "region": "Provide a short description for this region.",
        "box": "Provide the bounding box coordinate of the region this sentence describes.",
        "ocr": "Reference OCR token:",
        "unanswerable": "When the provided information is insufficient, respond with 'Unanswerable'.",
    }


def test_russian_has_every_prompt_and_the_wording_of_its_benchmarks() -> None:
    assert all(texts.get("ru") for texts in prompts().values())
    assert prompt("word", "ru") == "Ответь одним словом."
    assert prompt("letter", "ru") == "Выбери правильный вариант ответа буквой."


def test_chinese_has_the_one_prompt_that_llava_has() -> None:
    assert [name for name, texts in prompts().items() if "zh" in texts] == ["letter"]


@pytest.mark.parametrize(("name", "lang"), [("word", "zh"), ("letter", "de")])
def test_a_missing_prompt_is_named_with_the_remedy(name: str, lang: str) -> None:
    with pytest.raises(BadInput, match=rf"'{name}' in '{lang}'; leave out --format-prompts"):
        prompt(name, lang)
