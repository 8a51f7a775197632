"""Whole files and sealed folders."""

import os
from pathlib import Path

import pytest

from shards.errors import BadInput
from shards.files import (
    claim_output,
    read_json,
    release_output,
    verify_manifest,
    write_atomic,
    write_json,
    write_manifest,
)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")
    write_manifest(folder, {"step": 3})
    return folder


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a", b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_json_round_trip_keeps_order_and_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"я": 1, "b": [None]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n "я": 1,\n "b": [\n  null\n ]\n}\n'
    assert list(read_json(tmp_path / "a.json")) == ["я", "b"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"NaN", b"[" * 100_000, b"9" * 5000])
def test_garbage_json_names_the_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(BadInput, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


def test_missing_and_large_json(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    with pytest.raises(BadInput, match="larger"):
        read_json(tmp_path / "a.json", max_bytes=8)
    assert read_json(tmp_path / "a.json", max_bytes=9) == [1, 2, 3]


def test_manifest_of_a_whole_folder(sealed: Path) -> None:
    assert verify_manifest(sealed) == []
    manifest = read_json(sealed / "MANIFEST.json")
    assert list(manifest["files"]) == ["adapter/weights", "config.json"]
    assert manifest["step"] == 3


def test_every_flipped_bit_is_found(sealed: Path) -> None:
    path = sealed / "adapter" / "weights"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        assert verify_manifest(sealed) == ["adapter/weights: digest differs"]


def test_missing_truncated_and_unexpected_files(sealed: Path) -> None:
    (sealed / "config.json").unlink()
    os.truncate(sealed / "adapter" / "weights", 100)
    (sealed / "extra").touch()
    assert sorted(verify_manifest(sealed)) == [
        "adapter/weights: 100 bytes instead of 256",
        "config.json: missing",
        "extra: not in the manifest",
    ]


def test_links_are_neither_sealed_nor_followed(sealed: Path, tmp_path: Path) -> None:
    (sealed / "config.json").rename(tmp_path / "elsewhere")
    (sealed / "config.json").symlink_to(tmp_path / "elsewhere")
    assert verify_manifest(sealed) == ["config.json: not a plain file"]
    with pytest.raises(BadInput, match="plain files"):
        write_manifest(sealed)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": 1}', '{"files": {"../x": {}, "config.json": 7}}', "x"])
def test_garbage_manifest_is_a_problem(sealed: Path, manifest: str) -> None:
    (sealed / "MANIFEST.json").write_text(manifest)
    assert verify_manifest(sealed)


def test_missing_manifest_is_a_problem(tmp_path: Path) -> None:
    assert len(verify_manifest(tmp_path)) == 1


def test_output_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="holds something else"):
        claim_output(tmp_path, "dataset.json")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(BadInput, match="not a folder"):
        claim_output(tmp_path / "thesis.tex", "dataset.json")


def test_output_folder_is_unfinished_until_released(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert claim_output(out, "marker") is True
    assert claim_output(out, "marker") is False
    write_json(out / "marker", {})
    release_output(out)
    assert [path.name for path in out.iterdir()] == ["marker"]
    claim_output(out, "marker")
    assert [path.name for path in out.iterdir()] == [".unfinished"]
