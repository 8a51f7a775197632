"""Checkpoints against damage and full disks, which are kept, and training that goes on from them."""

import errno
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shards.errors import BadInput
from shards.files import sha256_file, write_json, write_manifest
from tests.vlm.forked import run_ranks
from vlm import checkpoint, saver
from vlm.checkpoint import CheckpointConfig, State
from vlm.data.step import Step
from vlm.events import read_events
from vlm.loop import Measured
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


def test_pruning_removes_what_kills_left_and_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("step-00000001", "step-00000003", "step-00000004", "step-00000005", "step-1.backup"):
        (tmp_path / "checkpoints" / name / "adapter").mkdir(parents=True)
        if name != "step-00000003":
            write_manifest(tmp_path / "checkpoints" / name)
    # a copy by hand, however whole, is no checkpoint
    assert checkpoint.newest(tmp_path) == checkpoint.step_folder(tmp_path, 5)
    plain = shutil.rmtree

    def rmtree(path: Path) -> None:
        if path.name == "step-00000001":
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        plain(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for _ in range(2):
        checkpoint._prune(tmp_path / "checkpoints", CheckpointConfig(keep=2), "step-00000005", 0)
        found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert found == ["step-00000001", "step-00000004", "step-00000005", "step-1.backup"]
        assert "step-00000001: cannot be removed (Directory not empty)" in capsys.readouterr().err


def test_what_only_looks_like_a_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint.step_folder(tmp_path, 1)
    (folder / "optimizer").mkdir(parents=True)
    write_json(folder / "state.json", {"step": 1, "later": True})
    with pytest.raises(BadInput, match=r"state\.json: of another version"):
        checkpoint.read_state(folder)
    torch.save({"weight/param": torch.ones(2, 2)}, folder / "optimizer" / "state.safetensors")
    with pytest.raises(BadInput, match="no safetensors file"):
        checkpoint.load_parameters(torch.nn.Linear(2, 2), folder)
    save_file({"weight/param": torch.ones(2, 2)}, folder / "optimizer" / "state.safetensors")
    with pytest.raises(BadInput, match="differ from the recipe's, first weight/exp_avg"):
        checkpoint.load_parameters(torch.nn.Linear(2, 2, bias=False), folder)


FILES = (
    "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "optimizer/state.safetensors", "state.json",
    "MANIFEST.json",
)  # fmt: skip


def test_no_other_file_is_in_a_checkpoint(whole: Path) -> None:
    last = checkpoint.step_folder(whole, STEPS)
    assert {path.relative_to(last).as_posix() for path in last.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_by_name(name: str, whole: Path) -> None:
    last, older, drawn = checkpoint.step_folder(whole, STEPS), checkpoint.step_folder(whole, 4), random.Random(0)
    for _ in range(4):
        at, bit = drawn.randrange((last / name).stat().st_size), 1 << drawn.randrange(8)
        _flip(last / name, at, bit)
        damaged: list[str] = []
        assert checkpoint.newest(whole, damaged) == older, (at, bit)
        # a damaged manifest accuses the file it names wrongly, or itself
        assert len(damaged) == 1 and (name in damaged[0] or name == "MANIFEST.json")
        _flip(last / name, at, bit)
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
    assert run_ranks(_arguments(run, model, russian, "checkpoint.every=1"), log, patience=60) == [1, 1]
    text = log.read_text()
    line = "step-00000002: the checkpoint could not be written: "
    assert text.count(line) == 2 and text.count("No space left on device") == 2
    assert "Traceback" not in text
    assert checkpoint.newest(run) == checkpoint.step_folder(run, 1)
    assert not checkpoint.step_folder(run, 2).exists()
    # it was written in the background: at the latest the save after it says so
    assert max(losses(run)) <= 3
    (told,) = (e["reason"] for e in read_events(run) if e["event"] == "unsaved")
    assert "No space left on device" in told


def _slow_disk(rank: int) -> None:
    """The first save is written only once the next two steps are done; the last takes longer than what hangs."""
    from vlm.loop import Training

    plain, advance, write, steps = Training.step, Training.advance, checkpoint.commit, threading.Semaphore(0)
    saver._TURN_SECONDS = 0.1

    def step(self: Training, step: Step) -> Measured | None:
        steps.release()
        return plain(self, step)

    def advanced(self: Training, *args: Any) -> State:
        state = advance(self, *args)
        if state.step == STEPS:
            self.watchdog.steps, self.watchdog.least = 0.001, 1.0
        return state

    def commit(gathered: Any, folder: Path, state: State, config: CheckpointConfig, allowed: Any) -> None:
        for _ in range(STEPS // 2 + 2) if state.step == STEPS // 2 else ():
            assert steps.acquire(timeout=60)
        if state.step == STEPS:
            threading.Event().wait(2.5)
        write(gathered, folder, state, config, allowed)

    Training.step, Training.advance, checkpoint.commit = step, advanced, commit  # type: ignore[method-assign]


def test_steps_go_on_while_a_checkpoint_is_written(plain: Path, model: Path, russian: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = _arguments(run, model, russian, "checkpoint.every=3", "checkpoint.background=true")
    assert run_ranks(arguments, log, _slow_disk, patience=60) == [0, 0], log.read_text()[-3000:]
    first, last = (event for event in read_events(run) if event["event"] == "checkpoint")
    assert (first["step"], last["step"]) == (3, STEPS)
    assert first["stall"] < first["seconds"] and last["stall"] == last["seconds"] > 2.5
    kinds = [(event["event"], event.get("step")) for event in read_events(run)]
    assert kinds.index(("checkpoint", 3)) > kinds.index(("step", 4))
    assert losses(run) == losses(plain)
    ends = [sorted(checkpoint.step_folder(r, STEPS).rglob("*.*")) for r in (run, plain)]
    assert [sha256_file(path) for path in ends[0]] == [sha256_file(path) for path in ends[1]]


@pytest.fixture(scope="module")
def plain(model: Path, russian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks to the end, no step while a checkpoint is written."""
    run = tmp_path_factory.mktemp("plain") / "run"
    arguments = _arguments(run, model, russian, "checkpoint.background=false", "checkpoint.keep=0")
    assert run_ranks(arguments, run.parent / "log") == [0, 0], (run.parent / "log").read_text()[-3000:]
    return run


def test_two_ranks_then_one_then_two(plain: Path, model: Path, russian: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    for ranks, until, stage in ((2, 1, "zero2"), (1, 2, "zero3"), (2, 4, "zero2")):
        arguments = _arguments(run, model, russian, f"optim.max_steps={until}", f"engine.deepspeed={stage}")
        assert run_ranks(arguments, log, ranks=ranks) == [0] * ranks, log.read_text()[-3000:]
    assert [e["step"] for e in read_events(run) if e["event"] == "start"] == [0, 1, 2]
    expected, found = losses(plain), losses(run)
    assert max(abs(found[step] - expected[step]) for step in found) < 1e-5
    weights = [load_file(checkpoint.step_folder(r, 4) / "adapter" / "adapter_model.safetensors") for r in (plain, run)]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-4 for name in weights[0])


def _allow_float16(rank: int) -> None:
    """DeepSpeed asks for a CPU that is fast at it; torch computes in it on any."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def test_float16_goes_on_from_its_loss_scale(model: Path, russian: Path, tmp_path: Path) -> None:
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    fixed = ["model.dtype=float16", "checkpoint.every=1", "data.batch_size=4"]
    for folder in (whole, run):
        arguments = _arguments(folder, model, russian, *fixed, "optim.max_steps=3")
        assert run_ranks(arguments, log, _allow_float16, ranks=1) == [0], log.read_text()[-3000:]
        if folder == whole:
            shutil.copytree(whole, run)
            shutil.rmtree(checkpoint.step_folder(run, 3))
    assert [e["step"] for e in read_events(run) if e["event"] == "start"] == [0, 2]
    states = [checkpoint.read_state(checkpoint.step_folder(r, 3)) for r in (whole, run)]
    assert states[0] == states[1] and states[0].loss_scale["cur_scale"] > 1
    assert states[0].loss_scale["cur_iter"] == 3
    assert losses(whole) == losses(run)


def test_training_shards_cannot_be_held_out(model: Path, russian: Path, tmp_path: Path) -> None:
    from vlm.config import Recipe, load_recipe
    from vlm.train import check

    with pytest.raises(BadInput, match=r"heldout\.data: .* is trained on"):
        check(load_recipe(Recipe, "demo", _arguments(tmp_path, model, russian, f"heldout.data={russian}")[1:]))
