"""Files that lie about themselves, and model folders that do not hold together."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import BadInput
from vlm.merge.layout import DTYPES, INDEX, SINGLE, Layout, WeightFile, header_bytes

_F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "fault"),
    [
        ({"a": _F32, "b": _F32}, bytes(8), "begins at byte"),
        ({"a": _F32, "b": {**_F32, "data_offsets": [4, 12]}}, bytes(12), "begins at byte"),
        ({"a": _F32, "b": {**_F32, "data_offsets": [9, 17]}}, bytes(17), "begins at byte"),
        ({"a": {**_F32, "data_offsets": [4, 12]}}, bytes(12), "begins at byte"),
        ({"a": _F32}, bytes(9), "its header speaks of"),
        ({"a": _F32}, bytes(7), "its header speaks of"),
        ({"a": {**_F32, "shape": [-2]}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "shape": [-1, -2]}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "shape": [2.0]}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "shape": [True, 2]}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "shape": [2**62, 2**62]}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "shape": [10**4000]}}, bytes(8), "do not agree"),
        (b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 5000 + b"]}}", bytes(8), "not valid JSON"),
        ({"a": {**_F32, "shape": [1] * 100_000}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "shape": "22"}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "data_offsets": [8, 0]}}, bytes(8), "do not agree"),
        ({"a": {**_F32, "data_offsets": [0]}}, bytes(8), "cannot read"),
        ({"a": {**_F32, "dtype": "F4"}}, bytes(8), "dtype F4 is not one of"),
        ({"a": {**_F32, "dtype": ["F32"]}}, bytes(8), "is not one of"),
        ({"a": {"dtype": "F32"}}, bytes(8), "cannot read"),
        ({"a": 5}, bytes(8), "cannot read"),
        ({"\ud800": _F32}, bytes(8), "do not agree"),
        ({"__metadata__": {"format": ["pt"]}, "a": _F32}, bytes(8), "no object of strings"),
        ({"__metadata__": {"format": "\ud800"}, "a": _F32}, bytes(8), "no object of strings"),
        ({"__metadata__": "pt", "a": _F32}, bytes(8), "no object of strings"),
        ([_F32], bytes(8), "no object"),
        (b"{" + b'"a":{' * 5000, b"", "not valid JSON"),
        (b'{"a": NaN}', b"", "not valid JSON"),
        (b"\xff\xff\xff", b"", "not valid JSON"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "dtype stands there twice"),
        (b'{"a": %s, "a": %s}' % ((json.dumps(_F32).encode(),) * 2), bytes(8), "a stands there twice"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused_in_a_line(header: Any, data: bytes, fault: str, tmp_path: Path) -> None:
    path = _file(tmp_path / SINGLE, header, data)
    with pytest.raises(BadInput, match=fault) as caught:
        WeightFile.read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 800
    assert message.isprintable()


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_headers_length_that_lies_reads_nothing(length: int, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="its header's length is"):
        WeightFile.read(_file(tmp_path / SINGLE, {"a": _F32}, bytes(8), length))


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", 60 << 20))
        handle.truncate(100 << 20)
    with pytest.raises(BadInput, match="its header's length is 62914560"):
        WeightFile.read(path)
    (tmp_path / "short").write_bytes(b"1234567")
    with pytest.raises(BadInput, match="header's length is 0"):
        WeightFile.read(tmp_path / "short")


def _write(path: Path, *names: str) -> None:
    path.write_bytes(header_bytes(dict.fromkeys(names, (torch.float32, (2,))), {}) + bytes(8 * len(names)))


def _folder(folder: Path, index: Any = None, config: str = "{}") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    _write(folder / "model-1.safetensors", "a", "b")
    _write(folder / "model-2.safetensors", "c")
    files = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": files} if index is None else index))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../model-1.safetensors", "/etc/passwd", "model-1.bin", "", "a/b.safetensors", "a\0.safetensors",
     "\ud800.safetensors", "..safetensors", "x" * 5000 + ".safetensors", "..", "model-1.safetensors\n"],
)  # fmt: skip
def test_an_index_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no safetensors file of this folder"):
        Layout.read(_folder(tmp_path / "model", {"weight_map": {"a": name}}))


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 5}}])
def test_an_index_that_is_none(index: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match='has no "weight_map"'):
        Layout.read(_folder(tmp_path / "model", index))


def test_folders_that_do_not_hold_together(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    assert list(Layout.read(folder).tensors) == ["a", "b", "c"]

    def refused(change: Callable[[Path], Any], fault: str) -> None:
        copy = _folder(tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
        change(copy)
        with pytest.raises(BadInput, match=fault):
            Layout.read(copy)

    refused(lambda f: (f / "model-2.safetensors").unlink(), r"has no model-2.safetensors")
    refused(lambda f: _write(f / "model-2.safetensors", "d"), r"model-2.safetensors: lacks c, which")
    refused(lambda f: _write(f / "model-2.safetensors", "c", "b"), r"b stands in .* twice")
    refused(lambda f: (f / "config.json").write_text("[]"), r"config.json: no object")
    refused(lambda f: (f / "config.json").unlink(), r"config.json: cannot be read")
    refused(lambda f: (f / INDEX).unlink(), "has no model.safetensors; give a model folder in safetensors form")

    def both_names(folder: Path) -> None:
        # before and since transformers 4.52
        (folder / "config.json").write_text('{"model_type": "llava"}')
        (folder / INDEX).unlink()
        _write(folder / SINGLE, "language_model.lm_head.weight", "lm_head.weight")

    refused(both_names, r"lm_head.weight stands in .* twice")


def test_tensors_without_numbers_stand_anywhere(tmp_path: Path) -> None:
    none = {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}
    header = {"a": _F32, "z": none, "b": {**none, "data_offsets": [8, 8]}}
    path = _file(tmp_path / SINGLE, header, bytes(8))
    assert [tensor.name for tensor in WeightFile.read(path).tensors] == ["z", "a", "b"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1) | st.integers(0, 250))
def test_garbage_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int) -> None:
    path = tmp_path_factory.mktemp("garbage") / SINGLE
    path.write_bytes(struct.pack("<Q", length) + data)
    try:
        WeightFile.read(path)
    except BadInput as error:
        assert str(error).isprintable()


_keys = st.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats(allow_nan=False) | st.sampled_from([*DTYPES, "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_json, st.integers(0, 64))
def test_any_json_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, header: Any, size: int) -> None:
    path = _file(tmp_path_factory.mktemp("json") / SINGLE, header, bytes(size))
    try:
        assert sum(tensor.bytes for tensor in WeightFile.read(path).tensors) == size
    except BadInput as error:
        assert str(error).isprintable()
