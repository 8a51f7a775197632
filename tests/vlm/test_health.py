"""What is told of a training that goes wrong, and what ends it."""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from shards.errors import BadInput
from shards.files import sha256_file
from tests.vlm.forked import run_ranks
from vlm import checkpoint
from vlm.events import read_events
from vlm.health import Spikes, Stragglers
from vlm.lock import only_training


def test_a_spike_is_named_and_a_clean_curve_is_not() -> None:
    clean = [3 * math.exp(-step / 200) + 0.1 * math.sin(step * 7) for step in range(300)]
    spikes = Spikes()
    assert not any(spikes.sigmas(loss) for loss in clean)
    assert (spikes.sigmas(clean[-1] + 2) or 0) > 6
    assert Spikes().sigmas(1e6) is None


def test_a_rank_slow_in_three_windows_is_named() -> None:
    stragglers = Stragglers(4)
    slow, even = [1.0, 1.02, 1.5, 0.98], [1.0, 1.1, 1.2, 0.9]
    assert [stragglers.window(slow) for _ in range(2)] == [[], []]
    ((rank, speed),) = stragglers.window(slow)
    assert rank == 2 and speed == pytest.approx(0.667, abs=0.01)
    assert all(not stragglers.window(even) for _ in range(4))
    assert not stragglers.window(slow)
    pair = Stragglers(2)
    assert [pair.window([1.5, 1.0]) for _ in range(3)][-1] == [(0, pytest.approx(0.667, abs=0.01))]


def test_two_trainings_in_one_run_directory_are_fenced(tmp_path: Path) -> None:
    refused = pytest.raises(BadInput, match="another training is at work")
    with only_training(tmp_path), refused, only_training(tmp_path, seconds=0):
        raise AssertionError("both hold it")
    with only_training(tmp_path, seconds=0):
        pass


def _arguments(run: Path, model: Path, data: Path, *overrides: str) -> list[str]:
    fixed = ["data.batch_size=8", "data.micro_batch_tokens=700", "optim.epochs=2", "checkpoint.every=9"]
    return ["demo", f"run={run}", f"model.base={model}", f"data.train={data}", *fixed, *overrides]


class _Forward:
    """The engine's forward pass with something done to its loss."""

    def __init__(self, ds: Any, change: Callable[[Tensor], Tensor]) -> None:
        self.ds, self.change = ds, change

    def __call__(self, batch: Any) -> Tensor:
        return self.change(self.ds(batch))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ds, name)


def _in_step(before: Callable[[Any, int], None]) -> None:
    """Have `before(training, step index)` called at the beginning of every step."""
    from vlm.loop import Training

    plain = Training.step

    def step(self: Any, step: Any) -> Any:
        before(self, step.index)
        return plain(self, step)

    Training.step = step  # type: ignore[method-assign]


def _spoil(rank: int) -> None:
    """Rank 1's losses of steps 2, 4 and 5 are NaN."""

    def spoil(training: Any, index: int) -> None:
        factor = float("nan") if rank == 1 and index in (1, 3, 4) else 1.0
        ds = getattr(training.engine.ds, "ds", training.engine.ds) if index else training.engine.ds
        training.engine.ds = _Forward(ds, lambda loss: loss * factor)

    _in_step(spoil)


def _hang(rank: int) -> None:
    """From the second step on 2 s of silence are too long, and rank 1 is stopped in it."""

    def hang(training: Any, index: int) -> None:
        if index == 1:
            training.watchdog.steps, training.watchdog.least = 0.001, 2.0
            if rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)

    _in_step(hang)


def _slow(rank: int) -> None:
    """Rank 1 takes a second longer for every micro-batch."""

    def wait(loss: Tensor) -> Tensor:
        time.sleep(1)
        return loss

    def slow(training: Any, index: int) -> None:
        if rank == 1 and index == 0:
            training.engine.ds = _Forward(training.engine.ds, wait)

    _in_step(slow)


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == kind]


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_loss_that_is_not_finite_changes_nothing(stage: str, model: Path, russian: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    overrides = (f"engine.deepspeed={stage}", "checkpoint.every=1", "checkpoint.keep=0", "optim.max_nonfinite=2")
    codes = run_ranks(_arguments(run, model, russian, *overrides), log, _spoil)
    # the launcher's exit code; the other rank ends with it or is taken along
    assert 1 in codes and 0 not in codes, log.read_text()[-3000:]
    assert "2 steps in a row up to 5 were not finite" in log.read_text() and "Traceback" not in log.read_text()
    found = _events(run, "nonfinite")
    assert [event["step"] for event in found] == [2, 4, 5]
    # those of rank 1 alone
    assert all(0 < len(event["samples"]) < 8 for event in found)
    losses = {event["step"]: event["loss"] for event in _events(run, "step")}
    assert losses[2] is None and losses[3] is not None
    folders = [checkpoint.step_folder(run, step) for step in (1, 2, 3, 4)]
    digests = [sha256_file(folder / "optimizer" / "state.safetensors") for folder in folders]
    assert digests[0] == digests[1] != digests[2] == digests[3]
    state = checkpoint.read_state(folders[3])
    assert (state.updates, state.nonfinite) == (2, 1)


def test_a_hung_rank_is_named_and_the_job_ends(model: Path, russian: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    codes = run_ranks(_arguments(run, model, russian), log, _hang)
    assert codes == [128 + signal.SIGABRT, -signal.SIGKILL], log.read_text()[-3000:]
    assert "the job hangs" in log.read_text() and "no stack from rank 1" in log.read_text()
    stack = (run / "logs" / "stack-rank-000.txt").read_text()
    assert "vlm/loop.py" in stack and "in all_reduce" in stack
    assert not (run / "logs" / "stack-rank-001.txt").exists()
    assert [event["silent_ranks"] for event in _events(run, "hang")] == [[1]]


def test_a_straggler_is_named(model: Path, russian: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = _arguments(run, model, russian, "engine.window=1", "optim.max_steps=3")
    assert run_ranks(arguments, log, _slow) == [0, 0], log.read_text()[-3000:]
    (found,) = _events(run, "straggler")
    assert (found["rank"], found["step"]) == (1, 3) and found["speed"] < 0.75
    beats = [json.loads((run / "heartbeat" / f"rank-00{rank}.json").read_text()) for rank in range(2)]
    assert beats[1]["seconds"] > beats[0]["seconds"]
