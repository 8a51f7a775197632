"""Training through the command, with real DeepSpeed ranks: parity over ranks and ZeRO stages.

Exact and elastic resume.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from tests.vlm.forked import run_ranks
from vlm import checkpoint
from vlm.checkpoint import CheckpointConfig
from vlm.data.images import Pixels
from vlm.events import read_events
from vlm.model.adapter import AdapterConfig, trainable
from vlm.model.assemble import Assembly
from vlm.model.load import load_model
from vlm.model.packed import PackedLlava
from vlm.train import losses

STEPS = 6


def _arguments(model: Path, data: Path, run: Path, *overrides: str) -> list[str]:
    return [
        "demo",
        f"run={run}",
        f"model.base={model}",
        f"data.train={data}",
        "data.batch_size=8",
        # small rows: several micro-batches a step
        "data.micro_batch_tokens=700",
        f"optim.epochs={STEPS * 8 / 24}",
        "optim.grad_clip=0.5",
        "checkpoint.every=3",
        "checkpoint.keep=0",
        *overrides,
    ]


Train = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def whole(run_train: Train, model: Path, russian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO-2, from the first step to the last."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = run_train(_arguments(model, russian, run))
    assert done.returncode == 0, done.stderr[-3000:]
    return run


def _train(arguments: list[str], ranks: int = 2) -> None:
    run = Path(arguments[1].removeprefix("run="))
    log = run.with_suffix(".log")
    assert run_ranks(arguments, log, ranks=ranks) == [0] * ranks, log.read_text()[-3000:]


@pytest.mark.parametrize(("ranks", "stage"), [(1, "zero2"), (2, "zero3")])
def test_ranks_and_stages_give_the_same_losses(
    ranks: int, stage: str, model: Path, russian: Path, whole: Path, tmp_path: Path
) -> None:
    _train(_arguments(model, russian, tmp_path / "run", f"engine.deepspeed={stage}"), ranks)
    expected, found = losses(whole), losses(tmp_path / "run")
    assert list(found) == list(range(1, STEPS + 1))
    assert max(abs(found[s] - expected[s]) for s in expected) < 1e-6
    assert expected[STEPS] < expected[1]


def test_resume_is_exact(model: Path, russian: Path, whole: Path, tmp_path: Path) -> None:
    """From the checkpoint before one with a flipped bit."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    weights = checkpoint.step_folder(run, STEPS) / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    _train(_arguments(model, russian, run))
    events = read_events(run)
    assert [e["step"] for e in events if e["event"] == "start"] == [0, 3]
    assert [weights.name in e["problem"] for e in events if e["event"] == "damaged"] == [True]
    assert losses(run) == losses(whole)
    state = Path("checkpoints") / f"step-{STEPS:08d}" / "optimizer" / "state.safetensors"
    expected, found = load_file(whole / state), load_file(run / state)
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)


def test_resume_on_other_ranks_and_stage(model: Path, russian: Path, whole: Path, tmp_path: Path) -> None:
    """After a kill in the middle of a save: the last checkpoint has no manifest."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (checkpoint.step_folder(run, STEPS) / "MANIFEST.json").unlink()
    _train(_arguments(model, russian, run, "engine.deepspeed=zero3"), ranks=1)
    expected, found = losses(whole), losses(run)
    assert max(abs(found[s] - expected[s]) for s in expected) < 1e-6


def test_a_stop_signal_reaches_the_ranks_and_asks_for_a_requeue(model: Path, russian: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = _arguments(model, russian, run)
    command = [sys.executable, "-u", "-m", "launch.cli", "train", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 1/" in line:
            process.send_signal(signal.SIGUSR2)
            break
    process.stdout.read()
    assert process.wait() == 75
    events = [e["event"] for e in read_events(run)]
    assert events[-1] == "stop" and 0 < events.count("step") < STEPS
    assert checkpoint.newest(run) == checkpoint.step_folder(run, events.count("step"))


def test_a_dead_rank_takes_the_others_with_it(model: Path, russian: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "launch.cli", "train", *_arguments(model, russian, tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 1/" in line:
            ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(ranks[1]), signal.SIGKILL)
            break
    # the pipe ends when the last process that holds it has ended
    process.stdout.read()
    assert process.wait() == 1


def test_finished_training_is_not_repeated_and_other_plans_are_refused(
    model: Path, russian: Path, whole: Path, tmp_path: Path
) -> None:
    before, log = len(read_events(whole)), tmp_path / "log"
    _train(_arguments(model, russian, whole), ranks=1)
    assert len(read_events(whole)) == before
    assert run_ranks(_arguments(model, russian, whole, "seed=5"), log, ranks=1) == [2]
    assert "other data or settings" in log.read_text() and "Traceback" not in log.read_text()


def test_a_checkpoint_of_another_shape_is_refused(model: Path, whole: Path) -> None:
    packed = PackedLlava(
        trainable(load_model(model, "float32", packed=True), AdapterConfig(r=4), Assembly.read(model)), Pixels.of(model)
    )
    with pytest.raises(BadInput, match=r"lora_A.* is \(16, .*, the recipe's \(4, "):
        checkpoint.load_parameters(packed, checkpoint.step_folder(whole, STEPS))


def test_pruning_never_takes_what_was_just_written(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    # step 6 is there and damaged: the run resumed from 3 and now stands at 4
    shutil.copytree(checkpoint.step_folder(run, 3), checkpoint.step_folder(run, 4))
    checkpoint._prune(run / "checkpoints", CheckpointConfig(keep=1), checkpoint.step_folder(run, 4).name, 0)
    assert checkpoint.step_folder(run, 4).exists() and not checkpoint.step_folder(run, 3).exists()


def test_plain_peft_loads_the_adapter(model: Path, whole: Path) -> None:
    folder = checkpoint.step_folder(whole, STEPS)
    # the adapter holds the adapter, not the frozen base
    assert sum(p.stat().st_size for p in folder.rglob("*")) < 12 * 2**20
    base = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    before = base.model.multi_modal_projector.linear_1.weight.clone()
    adapted = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    assert not torch.equal(adapted.model.multi_modal_projector.linear_1.weight, before)
    saved = load_file(folder / "optimizer" / "state.safetensors")
    projector = next(t for n, t in saved.items() if n.endswith("linear_1.modules_to_save.default.weight/param")
                     or n.endswith("modules_to_save.default.linear_1.weight/param"))  # fmt: skip
    assert torch.equal(adapted.model.multi_modal_projector.linear_1.weight, projector)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=nowhere", "nowhere"),
        ("model.base=nowhere", "model.base: nowhere is not a model folder"),
        ("data.max_length=66", "data.max_length"),
        ("engine.deepspeed=zero9", "choose zero2, zero3"),
        ("data.trian=x", "did you mean data.train"),
    ],
)
def test_bad_input_ends_before_any_rank_starts(
    override: str, message: str, model: Path, russian: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert run_ranks(_arguments(model, russian, tmp_path / "run", override), log, ranks=0) == [2]
    assert message in log.read_text() and len(log.read_text().strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
