"""Samples and images: valid ones round-trip, others are refused by key and field."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.errors import BadInput
from shards.images import check_image, read_header
from shards.sample import Sample

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def valid() -> dict[str, Any]:
    question = {"question_id": "q", "question": "что это?", "answers": ["кот"], "type": "open"}
    return {
        "id": "1",
        "source": "test",
        "lang": "ru",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "отвечай"}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "что это?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "кот"}]},
        ],
        "questions": [question | {"options": ["кот", "пёс"], "hint": "оно мяукает", "details": {"index": 7}}],
        "original": {"lang": "en", "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]},
        "translation": {"engine": "memory", "model": "m", "score": None},
    }


def places(obj: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list) else ()
    return [path, *(found for name, value in items for found in places(value, (*path, name)))]


def replaced(obj: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = obj.copy()
    copy[path[0]] = replaced(obj[path[0]], path[1:], value)
    return copy


def test_round_trip() -> None:
    sample = Sample.from_json("k", valid(), b"...", "png")
    assert sample.to_json() == valid()
    assert sample.questions[0].answers == ("кот",)


@given(st.sampled_from(places(valid())), JSON)
def test_rubbish_is_refused_or_stored_as_it_is(path: tuple[Any, ...], rubbish: Any) -> None:
    obj = replaced(valid(), path, rubbish)
    try:
        sample = Sample.from_json("k", obj, b"...", "png")
    except BadInput as error:
        assert "'k'" in str(error)
    else:
        stored = json.loads(json.dumps(sample.to_json(), ensure_ascii=False).encode())
        assert Sample.from_json("k", stored, b"...", "png").to_json() == sample.to_json()


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("id",), "", "id"),
        (("lang",), "english please", "lang"),
        (("messages",), [], "messages"),
        (("messages", 1, "role"), "tool", "messages[1].role"),
        (("messages", 1, "content"), "what?", "messages[1].content"),
        (("messages", 1, "content"), [], "messages[1].content"),
        (("messages", 1, "content", 0, "type"), "video", "messages[1].content[0]"),
        (("messages", 1, "content", 0), {"type": "image", "url": "http://x"}, "messages[1].content[0]"),
        (("messages", 2, "content", 0, "text"), "a\0b", "messages[2].content[0].text"),
        (("messages", 2, "content", 0, "text"), "\ud800", "messages[2].content[0].text"),
        (("messages", 2, "content", 0, "text"), " ", "messages[2].content[0].text"),
        (("messages", 2, "content", 0), {"type": "image"}, "messages[2].content[0]"),
        (("messages", 1, "content", 1), {"type": "image"}, "messages"),
        (("messages", 1, "content", 0), {"type": "text", "text": "a"}, "messages"),
        (("questions", 0, "answers"), ["да", " "], "questions[0].answers[1]"),
        (("questions", 0, "options"), ["да", ""], "questions[0].options[1]"),
        (("questions", 0, "details"), ["x"], "questions[0].details"),
        (("questions", 0, "answers", 0), 7, "questions[0].answers[0]"),
        (("questions", 0, "type"), 7, "questions[0].type"),
        (("original",), None, "original"),
        (("original", "messages", 0, "role"), "x", "original.messages[0].role"),
        (("translation", "score"), "good", "translation.score"),
    ],
)
def test_error_names_key_and_field(path: tuple[Any, ...], value: Any, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        Sample.from_json("key-1", replaced(valid(), path, value), b"...", "png")
    assert str(caught.value).startswith(f"sample 'key-1', {field}: ")


def test_unknown_and_missing_fields() -> None:
    with pytest.raises(BadInput, match="'extra' is unknown"):
        Sample.from_json("k", {**valid(), "extra": 1}, b"...", "png")
    with pytest.raises(BadInput, match="'id' is missing"):
        Sample.from_json("k", {}, b"...", "png")


def test_repeated_question_id() -> None:
    obj = valid()
    obj["questions"] *= 2
    with pytest.raises(BadInput, match=r"questions\[1\]\.question_id"):
        Sample.from_json("k", obj, b"...", "png")


@pytest.mark.parametrize("key", ["", "a.b", "../x", "a/b", "é", "a\n", "a" * 129])
def test_bad_keys(key: str) -> None:
    with pytest.raises(BadInput, match="key"):
        Sample.from_json(key, valid(), b"...", "png")


@pytest.mark.parametrize(("image", "ext"), [(None, None), (None, "png"), (b"x", None), (b"x", "gif")])
def test_image_and_its_place_go_together(image: bytes | None, ext: str | None) -> None:
    with pytest.raises(BadInput, match="image"):
        Sample.from_json("k", valid(), image, ext)


@pytest.mark.parametrize(("name", "ext"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_images_of_three_formats(name: str, ext: str) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(buffer, name)
    data = buffer.getvalue()
    assert check_image(data) == read_header(data) == (ext, 40, 30)
    with pytest.raises(BadInput, match="image"):
        check_image(data[: len(data) // 2])


def test_other_formats_are_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "GIF")
    with pytest.raises(BadInput, match="not a JPEG"):
        check_image(buffer.getvalue())


def test_image_bomb_is_refused_by_its_header() -> None:
    buffer = io.BytesIO()
    Image.new("1", (8000, 8000)).save(buffer, "PNG")
    with pytest.raises(BadInput, match="8000x8000"):
        check_image(buffer.getvalue())


@given(st.binary(max_size=200), st.integers(0, 100))
def test_rubbish_images(noise: bytes, cut: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with pytest.raises(BadInput):
        check_image(buffer.getvalue()[: min(cut, 40)] + noise)


def test_text_only_sample(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample(1, with_image=False)
    assert Sample.from_json(sample.key, sample.to_json()) == sample
