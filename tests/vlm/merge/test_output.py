"""The output folder: it appears whole, after a full disk the merge goes on, and two merges do not meet."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import run as command
from shards.errors import BadInput
from shards.files import read_json, verify_manifest, write_json, write_manifest
from tests.vlm.merge.proof_models import lora, write_adapter, write_base
from vlm.merge import output, stream
from vlm.merge.layout import WeightFile
from vlm.merge.plan import MergePlan
from vlm.merge.proof import TOLERANCE, Differs
from vlm.merge.run import Checks, Telling, merge, verify

CHECKS = Checks(probes=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_base(tmp_path_factory.mktemp("base") / "base")
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter", lora())


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Full:
    """A file on a disk that has room for so many bytes more."""

    room = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        self.file = open(*args, **options)  # noqa: SIM115  closed by the caller
        self.writes = "w" in args[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        if not Full.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done: int = self.file.write(data[: Full.room])
        Full.room -= done
        return done


def test_a_full_disk_is_told_and_the_merge_goes_on(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = MergePlan(base, [adapter], tmp_path / "whole")
    merge(whole, CHECKS)
    sizes = sorted(path.stat().st_size for path in whole.out.glob("*.safetensors"))
    assert len(sizes) > 2
    out = tmp_path / "out"
    arguments = ["merge", str(adapter), "--base", str(base), "--out", str(out), "--probes", "1"]
    Full.room = sizes[-1] + sizes[-2] + 10
    with monkeypatch.context() as patch:
        patch.setattr(stream, "open", Full, raising=False)
        assert command(arguments) == 1
    said = capsys.readouterr().err
    assert "No space left on device; make room and start the same command again" in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.merging", "whole"]
    assert read_json(tmp_path / ".out.merging" / "done.json")
    read: list[str] = []
    honest = output.rewrite

    def noting(file: WeightFile, *rest: Any) -> Any:
        read.append(file.path.name)
        return honest(file, *rest)

    monkeypatch.setattr(output, "rewrite", noting)
    assert command(arguments) == 0
    assert 0 < len(read) < len(sizes)
    assert _files(out) == _files(whole.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def _interrupt() -> Telling:
    """At the first that is heard of the proof after something was written."""
    written: list[int] = []

    def stop(done: int, total: int | None) -> None:
        if written:
            raise KeyboardInterrupt

    return Telling(lambda done, total: written.append(done), stop)


def test_a_merge_goes_on_with_what_is_its_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = MergePlan(base, [adapter], tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        merge(plan, CHECKS, telling=_interrupt())
    folder = tmp_path / ".out.merging"
    assert len(read_json(folder / "done.json")) > 1 and not plan.out.exists()
    # whatever lies there is sealed into the folder
    (folder / "model" / "added_tokens.json").write_text("{}")
    merge(plan, CHECKS)
    assert not (plan.out / "added_tokens.json").exists() and not verify_manifest(plan.out)
    # nor is a finished file kept that is no longer what was written
    with pytest.raises(KeyboardInterrupt):
        merge(plan, CHECKS, telling=_interrupt())
    before, (first, *_) = _files(plan.out), sorted((folder / "model").glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-2] ^= 1
    first.write_bytes(data)
    merge(plan, CHECKS)
    assert _files(plan.out) == before and not verify_manifest(plan.out)
    # other inputs start anew
    with pytest.raises(KeyboardInterrupt):
        merge(plan, CHECKS, telling=_interrupt())
    other, again = (MergePlan(base, [adapter], tmp_path / name, "float16") for name in ("out", "again"))
    merge(other, CHECKS)
    merge(again, CHECKS)
    assert _files(other.out) == _files(again.out)


def test_a_merge_that_ended_before_it_tidied_up(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = MergePlan(base, [adapter], tmp_path / "out")
    remove = shutil.rmtree

    def until_it_is_there(folder: Path, **options: Any) -> None:
        if plan.out.exists():
            raise KeyboardInterrupt
        remove(folder, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(output.shutil, "rmtree", until_it_is_there)
        merge(plan, CHECKS)
    before = _files(plan.out)
    assert not verify_manifest(plan.out) and read_json(tmp_path / ".out.merging" / "done.json")
    merge(plan, CHECKS)
    assert _files(plan.out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_earlier_model_comes_back_where_the_next_did_not_get_there(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(MergePlan(base, [adapter], tmp_path / "out"), CHECKS)
    before, rename, other = _files(tmp_path / "out"), os.rename, MergePlan(base, [adapter], tmp_path / "out", "float16")

    def once(source: Path, target: Path) -> None:
        if not (tmp_path / "out").exists():
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(output.os, "rename", once)
        merge(other, CHECKS)
    assert not (tmp_path / "out").exists()
    # the proof is spoilt: what was there before is there again
    with monkeypatch.context() as patch, pytest.raises(Differs):
        patch.setitem(TOLERANCE, torch.float16, 0.0)
        merge(other, CHECKS)
    assert _files(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_link_leads_the_work_elsewhere(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / ".out.merging").symlink_to("mine")
    with pytest.raises(BadInput, match=r"\.out\.merging: a link"):
        merge(MergePlan(base, [adapter], tmp_path / "out"), CHECKS)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["model"]


@pytest.mark.parametrize("metadata", [None, [], "x"])
def test_an_index_of_odd_metadata(base: Path, adapter: Path, tmp_path: Path, metadata: Any) -> None:
    copy = shutil.copytree(base, tmp_path / "base")
    index = copy / "model.safetensors.index.json"
    (copy / "MANIFEST.json").unlink()
    write_json(index, {**read_json(index), "metadata": metadata})
    merge(MergePlan(copy, [adapter], tmp_path / "out"), CHECKS)
    assert read_json(tmp_path / "out" / index.name)["metadata"].keys() == {"total_size"}


def test_two_merges_do_not_meet(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = MergePlan(base, [adapter], tmp_path / "out")
    refused: list[str] = []

    def meanwhile(done: int, total: int | None) -> None:
        if not refused:
            with pytest.raises(BadInput, match="another merge is at work there") as caught:
                merge(plan, CHECKS)
            refused.append(str(caught.value))

    merge(plan, CHECKS, telling=Telling(written=meanwhile))
    assert refused and not verify_manifest(plan.out)


def test_a_flipped_bit_in_a_later_file_is_found_by_name(base: Path, adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    last = max(copy.glob("*.safetensors"))
    data = bytearray(last.read_bytes())
    data[-2] ^= 1
    last.write_bytes(data)
    plan = MergePlan(copy, [adapter], tmp_path / "out")
    with pytest.raises(BadInput, match=rf"{last.name}: damaged: its digest is not the one in MANIFEST"):
        merge(plan, CHECKS)
    assert not plan.out.exists()
    shutil.copy(base / last.name, last)
    merge(plan, CHECKS)
    assert not verify_manifest(plan.out)


def test_what_is_told(base: Path, adapter: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    plan = MergePlan(base, [adapter], tmp_path / "out", "bfloat16")
    proof = merge(plan, CHECKS, telling=Telling(written=lambda *at: told.append(at)))
    record = json.loads((plan.out / "merge.json").read_text())
    assert record["dtype"] == "bfloat16" and record["max_difference"] == proof.max_difference
    assert record["options"] == {} and len(record["adapters"]) == 1
    assert told and told == sorted(told) and all(total == told[0][1] for _, total in told)
    assert proof.line in (plan.out / "README.md").read_text()


def test_what_is_read_or_somebodys_is_never_replaced(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(MergePlan(base, [adapter], out), CHECKS)
    shutil.copytree(base, out / "base")
    with pytest.raises(BadInput, match="is, holds or lies in"):
        merge(MergePlan(out / "base", [adapter], out), CHECKS)
    (out / "base").rename(tmp_path / "base")
    with pytest.raises(BadInput, match="is, holds or lies in"):
        merge(MergePlan(tmp_path / "base", [adapter], tmp_path / "base" / "merged"), CHECKS)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"holds notes\.txt, no file of a merge"):
        merge(MergePlan(base, [adapter], out), CHECKS)
    (out / "notes.txt").unlink()
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(BadInput, match="a link; name the folder itself"):
        merge(MergePlan(base, [adapter], tmp_path / "link"), CHECKS)
    assert not verify_manifest(out)


def test_a_folder_that_readers_would_take_otherwise_is_not_verified(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = MergePlan(base, [adapter], tmp_path / "out")
    merge(plan, CHECKS)
    (plan.out / "MANIFEST.json").unlink()
    verify(plan, plan.out, CHECKS)
    shutil.copy(adapter / "adapter_config.json", plan.out)
    with pytest.raises(BadInput, match=r"holds adapter_config\.json, which transformers would add"):
        verify(plan, plan.out, CHECKS)
    (plan.out / "adapter_config.json").unlink()
    shutil.copy(next(base.glob("*.safetensors")), plan.out / "model.safetensors")
    with pytest.raises(BadInput, match="readers differ in which they take"):
        verify(plan, plan.out, CHECKS)


@pytest.mark.parametrize("name", ["x" * 250, "file/below"])
def test_a_place_that_cannot_be_made(name: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"--out .*: cannot be made"):
        merge(MergePlan(base, [adapter], tmp_path / name), CHECKS)
