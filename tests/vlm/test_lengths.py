"""Lengths: measured once by any number of processes, kept, measured again when anything they depend on changes."""

import errno
import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm.data import lengths
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.lengths import Lengths, check_lengths, lengths_of, measure
from vlm.data.template import TEMPLATES
from vlm.model.load import load_tokenizer

MakeTokeniser = Callable[..., Tokeniser]


@pytest.fixture(scope="module")
def tokeniser_of(model: Path) -> MakeTokeniser:
    tokenizer = load_tokenizer(model)
    return lambda name="mistral-instruct", tokens=64, **more: Tokeniser(tokenizer, TEMPLATES[name], tokens, **more)


@pytest.fixture(scope="module")
def pixels(model: Path) -> Pixels:
    return Pixels.of(model)


def test_counts_are_those_of_the_documents_by_any_number_of_processes(
    russian: Path, tokeniser_of: MakeTokeniser, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, tokeniser = ShardDataset.open(russian), tokeniser_of(turns="separate")
    documents = [tokeniser.document(sample) for sample in dataset]
    expected = [(len(d), d.supervised, d.images) for d in documents]
    monkeypatch.setattr(lengths, "_ALONE", 0)
    monkeypatch.setattr(lengths, "_CHUNK", 5)
    for workers in (1, 3):
        assert measure(dataset, tokeniser, pixels, workers).tolist() == [list(row) for row in expected]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sample_that_cannot_be_tokenised_is_named(
    english: Path, tokeniser_of: MakeTokeniser, pixels: Pixels, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(lengths, "_ALONE", 0)
    monkeypatch.setattr(lengths, "_CHUNK", 2)
    with pytest.raises(BadInput, match=r"easyvqa-train-000000: data\.max_length=30 cuts through an image"):
        measure(ShardDataset.open(english), tokeniser_of(max_length=30), pixels, workers)


class _Executed:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("a kept file was executed",)


def test_kept_file_is_used_and_damage_is_mended(
    english: Path,
    tokeniser_of: MakeTokeniser,
    pixels: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset, tokeniser = ShardDataset.open(english), tokeniser_of()
    first = lengths_of(dataset, tokeniser, pixels, tmp_path)
    (path,) = tmp_path.glob("*.lengths")
    whole, payload = path.read_bytes(), np.array([[9, 10, 0]] * 24, dtype="<i4").tobytes()
    hostile = payload + hashlib.sha256(path.name.encode() + payload).digest()
    other = whole[:-32] + hashlib.sha256(whole[:-32]).digest()
    pickled = io.BytesIO()
    np.save(pickled, np.array([_Executed()] * 24))
    packed = pickled.getvalue() + hashlib.sha256(pickled.getvalue()).digest()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    assert capsys.readouterr().err == ""
    for damaged in (whole[:-1], flipped, b"", whole + b"x", hostile, other, packed):
        path.write_bytes(damaged)
        assert np.array_equal(lengths_of(dataset, tokeniser, pixels, tmp_path).tokens, first.tokens)
        assert path.read_bytes() == whole
        assert capsys.readouterr().err == f"{path}: damaged; the lengths are measured again\n"
    path.unlink()
    os.mkfifo(path)
    assert np.array_equal(lengths_of(dataset, tokeniser, pixels, tmp_path).tokens, first.tokens)
    assert path.read_bytes() == whole
    monkeypatch.setattr(lengths, "measure", lambda *_: pytest.fail("measured again"))
    assert np.array_equal(lengths_of(dataset, tokeniser_of(), pixels, tmp_path).supervised, first.supervised)


def test_what_changes_documents_is_measured_again(
    english: Path, russian: Path, tokeniser_of: MakeTokeniser, pixels: Pixels, tmp_path: Path
) -> None:
    for folder, tokeniser in [
        (english, tokeniser_of()),
        (english, tokeniser_of(turns="separate")),
        (english, tokeniser_of(max_length=80)),
        (english, tokeniser_of(tokens=63)),
        (english, tokeniser_of("vicuna_v1")),
        (russian, tokeniser_of()),
    ]:
        before = len(list(tmp_path.glob("*.lengths")))
        lengths_of(ShardDataset.open(folder), tokeniser, pixels, tmp_path)
        assert len(list(tmp_path.glob("*.lengths"))) == before + 1
    other = load_tokenizer_with_one_more_token(tokeniser_of())
    assert other.digest != tokeniser_of().digest


def load_tokenizer_with_one_more_token(tokeniser: Tokeniser) -> Tokeniser:
    import copy

    tokenizer = copy.deepcopy(tokeniser.tokenizer)
    tokenizer.add_tokens(["oneMoreToken"])
    return Tokeniser(tokenizer, tokeniser.template, tokeniser.image_tokens)


def test_of_several_at_once_one_measures(
    english: Path, tokeniser_of: MakeTokeniser, pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, dataset, tokeniser = list[int](), ShardDataset.open(english), tokeniser_of()

    def counted(dataset: ShardDataset, tokeniser: Tokeniser, pixels: Pixels, workers: int) -> np.ndarray:
        calls.append(workers)
        return measure(dataset, tokeniser, pixels, workers)

    monkeypatch.setattr(lengths, "measure", counted)
    ask = [threading.Thread(target=lengths_of, args=(dataset, tokeniser, pixels, tmp_path)) for _ in range(4)]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert len(calls) == 1


def test_a_folder_that_cannot_be_written_costs_only_time(
    english: Path, tokeniser_of: MakeTokeniser, pixels: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    found = lengths_of(ShardDataset.open(english), tokeniser_of(), pixels, tmp_path / "file" / "below")
    assert len(found) == 24
    (line,) = capsys.readouterr().err.splitlines()
    assert "name another folder in data.cache" in line


def test_a_full_disk_costs_only_time(
    english: Path,
    tokeniser_of: MakeTokeniser,
    pixels: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shards.files.os.fsync", full)
    assert len(lengths_of(ShardDataset.open(english), tokeniser_of(), pixels, tmp_path)) == 24
    (line,) = capsys.readouterr().err.splitlines()
    assert "lengths not kept (No space left on device)" in line
    # nothing half-written stays behind
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_abnormal_shares_are_told() -> None:
    def lines(supervised: int, tokens: int = 676) -> list[str]:
        ten = np.full(10, 1)
        return check_lengths(Lengths(ten * tokens, ten * supervised, ten), 576, 700, "set")

    assert lines(30) == [] and lines(1) == []
    assert "0.5 % of the text tokens" in check_lengths(Lengths(*np.array([[776], [1], [1]])), 576, 999, "set")[0]
    assert "99 % of the text tokens" in lines(99)[0]
    assert "100 % of the samples are cut; raise data.max_length=700" in lines(30, 700)[0]
