"""Checkpoints against damage and full disks, which are kept, and training that goes on from them."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shards.errors import BadInput
from shards.files import write_json, write_manifest
from tests.vlm.forked import run_ranks
from vlm import checkpoint
from vlm.checkpoint import CheckpointConfig
from vlm.events import read_events
from vlm.train import losses

STEPS = 6


def _arguments(run: Path, model: Path, data: Path, *overrides: str) -> list[str]:
    fixed = ["data.batch_size=8", "data.micro_batch_tokens=700", "optim.epochs=2", "checkpoint.every=2"]
    return ["demo", f"run={run}", f"model.base={model}", f"data.train={data}", *fixed, *overrides]


@pytest.fixture(scope="module")
def whole(model: Path, russian: Path, english: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks to the end, with a held-out loss, and a learning rate too high for the best one to come last."""
    run = tmp_path_factory.mktemp("whole") / "run"
    overrides = [
        f"heldout.data={english}",
        "heldout.every=1",
        "heldout.batches=1",
        "checkpoint.keep=1",
        "optim.lr=0.02",
    ]
    arguments = _arguments(run, model, russian, *overrides, "optim.schedule=constant", "checkpoint.keep_every=4")
    assert run_ranks(arguments, run.parent / "log") == [0, 0], (run.parent / "log").read_text()[-3000:]
    return run


def test_the_last_the_best_and_every_nth_are_kept(whole: Path) -> None:
    found = {e["step"]: e["loss"] for e in read_events(whole) if e["event"] == "heldout"}
    assert list(found) == list(range(1, STEPS + 1))
    best = min(found, key=lambda step: found[step])
    folders = {path.name for path in (whole / "checkpoints").glob("step-*")}
    assert folders == {f"step-{step:08d}" for step in {best, 4, STEPS}}
    assert (whole / "checkpoints" / "best").read_text().strip() == f"step-{best:08d}"
    state = checkpoint.read_state(checkpoint.step_folder(whole, STEPS))
    assert (state.best_step, state.best_loss, state.evaluated) == (best, found[best], STEPS)


def test_pruning_spares_the_best_and_every_nth(tmp_path: Path) -> None:
    for step in range(1, 8):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        write_json(folder / "state.json", step)
        write_manifest(folder)
    config = CheckpointConfig(keep=2, keep_every=3)
    checkpoint._prune(tmp_path, config, "step-00000007", 2)
    assert [int(path.name[-1]) for path in sorted(tmp_path.glob("step-*"))] == [2, 3, 6, 7]


def test_a_flipped_bit_in_any_file_is_refused_by_name(whole: Path) -> None:
    last, older = checkpoint.step_folder(whole, STEPS), checkpoint.step_folder(whole, 4)
    drawn = random.Random(0)
    files = [path for path in last.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        for _ in range(4):
            at, bit = drawn.randrange(path.stat().st_size), 1 << drawn.randrange(8)
            _flip(path, at, bit)
            damaged: list[str] = []
            assert checkpoint.newest(whole, damaged) == older, (path, at, bit)
            # a damaged manifest accuses the file it names wrongly, or itself
            assert len(damaged) == 1 and (path.name in damaged[0] or path.name == "MANIFEST.json")
            _flip(path, at, bit)
    assert checkpoint.newest(whole) == last


def _flip(path: Path, at: int, bit: int) -> None:
    with open(path, "r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ bit]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint and not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path, model: Path, russian: Path, tmp_path: Path) -> None:
    run, log = small_disk / "run", tmp_path / "log"
    codes = run_ranks(_arguments(run, model, russian, "checkpoint.every=1"), log)
    assert 1 in codes and 0 not in codes
    text = log.read_text()
    assert "step-00000002: the checkpoint could not be written" in text and "No space left on device" in text
    assert "Traceback" not in text
    assert checkpoint.newest(run) == checkpoint.step_folder(run, 1)
    assert not checkpoint.step_folder(run, 2).exists()


def test_two_ranks_then_one_then_two(model: Path, russian: Path, tmp_path: Path) -> None:
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert run_ranks(_arguments(whole, model, russian, "optim.max_steps=4"), log) == [0, 0], log.read_text()[-3000:]
    for ranks, until, stage in ((2, 1, "zero2"), (1, 2, "zero3"), (2, 4, "zero2")):
        arguments = _arguments(run, model, russian, f"optim.max_steps={until}", f"engine.deepspeed={stage}")
        assert run_ranks(arguments, log, ranks=ranks) == [0] * ranks, log.read_text()[-3000:]
    assert [e["step"] for e in read_events(run) if e["event"] == "start"] == [0, 1, 2]
    expected, found = losses(whole), losses(run)
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-5
    weights = [load_file(checkpoint.step_folder(r, 4) / "adapter" / "adapter_model.safetensors") for r in (whole, run)]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-4 for name in weights[0])


def _allow_float16(rank: int) -> None:
    """DeepSpeed asks for a CPU that is fast at it; torch computes in it on any."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def test_float16_goes_on_from_its_loss_scale(model: Path, russian: Path, tmp_path: Path) -> None:
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    fixed = ["model.dtype=float16", "checkpoint.every=1", "data.batch_size=4"]
    for folder, until in ((whole, 3), (run, 2), (run, 3)):
        arguments = _arguments(folder, model, russian, *fixed, f"optim.max_steps={until}")
        assert run_ranks(arguments, log, _allow_float16, ranks=1) == [0], log.read_text()[-3000:]
    states = [checkpoint.read_state(checkpoint.step_folder(r, 3)) for r in (whole, run)]
    assert states[0] == states[1] and states[0].loss_scale["cur_scale"] > 1
    assert states[0].loss_scale["cur_iter"] == 3
    assert losses(whole) == losses(run)


def test_training_shards_cannot_be_held_out(model: Path, russian: Path, tmp_path: Path) -> None:
    from vlm.config import Recipe, load_recipe
    from vlm.train import check

    with pytest.raises(BadInput, match=r"heldout\.data: .* is trained on"):
        check(load_recipe(Recipe, "demo", _arguments(tmp_path, model, russian, f"heldout.data={russian}")[1:]))
