"""Stops, at every stage of a training of two real ranks under ZeRO-3: saved, requeued, and gone on with to the bit."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shards.files import sha256_file
from tests.vlm.forked import Prepare, run_ranks
from vlm import checkpoint, deadline
from vlm.deadline import Deadline
from vlm.events import read_events
from vlm.train import losses

STEPS = 4
REQUEUE = 75


@pytest.fixture(scope="module")
def arguments(model: Path, russian: Path, english: Path) -> list[str]:
    return [
        "demo", f"model.base={model}", f"data.train={russian}", f"heldout.data={english}", "heldout.every=2",
        "heldout.batches=2", "engine.deepspeed=zero3", "data.batch_size=8", "data.micro_batch_tokens=700",
        f"optim.max_steps={STEPS}", "optim.epochs=2", "checkpoint.every=3", "checkpoint.best=false",
    ]  # fmt: skip


Train = Callable[[Path, Prepare | None], list[int | None]]


@pytest.fixture(scope="module")
def train(arguments: list[str]) -> Train:
    def train(run: Path, prepare: Prepare | None = None) -> list[int | None]:
        return run_ranks([*arguments, f"run={run}"], run.with_suffix(".log"), prepare, patience=60)

    return train


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stop") / "whole"
    assert train(run, None) == [0, 0], run.with_suffix(".log").read_text()[-3000:]
    return run


def _raise_signal(number: int) -> None:
    os.kill(os.getpid(), number)


def _in_mid_step(rank: int) -> None:
    """SIGTERM to rank 1 alone after the first backward pass of step 2, to rank 0 while it is obeyed."""
    from vlm.engine import Engine

    plain, write, passed = Engine.backward, checkpoint.commit, list[bool]()

    def backward(self: Engine, loss_sum: Any, supervised: int, last: bool) -> None:
        plain(self, loss_sum, supervised, last)
        passed.append(last)
        if rank == 1 and passed.count(True) == 1 and not last:
            _raise_signal(signal.SIGTERM)

    def commit(*args: Any) -> None:
        _raise_signal(signal.SIGTERM)
        write(*args)

    Engine.backward, checkpoint.commit = backward, commit  # type: ignore[method-assign]


def _in_evaluation(rank: int, number: int = 1) -> None:
    """SIGUSR1 to rank 0 between two micro-batches of the `number`-th held-out evaluation: after step 2 the first."""
    from vlm.heldout import Heldout

    plain, asked, begun = Heldout.loss, list[bool](), list[bool]()

    def loss(self: Heldout, engine: Any, rank: int, ranks: int, must_stop: Callable[[], bool]) -> float | None:
        begun.append(True)

        def stop_at_second() -> bool:
            if len(begun) == number:
                asked.append(True)
            if rank == 0 and len(asked) == 2:
                _raise_signal(signal.SIGUSR1)
            return must_stop()

        return plain(self, engine, rank, ranks, stop_at_second)

    Heldout.loss = loss  # type: ignore[method-assign]


@pytest.mark.parametrize(("prepare", "stopped"), [(_in_mid_step, 1), (_in_evaluation, 2)])
def test_it_goes_on_to_the_bit(prepare: Prepare, stopped: int, train: Train, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, prepare) == [REQUEUE, REQUEUE], run.with_suffix(".log").read_text()[-3000:]
    assert read_events(run)[-1] == {**read_events(run)[-1], "event": "stop", "step": stopped}
    assert checkpoint.newest(run) == checkpoint.step_folder(run, stopped)
    assert train(run, None) == [0, 0], run.with_suffix(".log").read_text()[-3000:]
    assert [e["step"] for e in read_events(run) if e["event"] == "step"] == list(range(1, STEPS + 1))
    assert losses(run) == losses(whole) and _heldout(run) == _heldout(whole)
    assert _digests(run) == _digests(whole)


def test_a_stop_in_the_last_evaluation_leaves_it_to_the_restart(train: Train, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, partial(_in_evaluation, number=2)) == [REQUEUE, REQUEUE], run.with_suffix(".log").read_text()
    assert checkpoint.newest(run) == checkpoint.step_folder(run, STEPS) and len(_heldout(run)) == 1
    assert train(run, None) == [0, 0], run.with_suffix(".log").read_text()[-3000:]
    assert losses(run) == losses(whole) and _heldout(run) == _heldout(whole)
    best = [(folder / "checkpoints" / "best").read_text() for folder in (run, whole)]
    assert best == [f"step-{STEPS:08d}\n"] * 2


def _heldout(run: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in read_events(run) if e["event"] == "heldout"]


def _digests(run: Path) -> dict[str, str]:
    last = checkpoint.step_folder(run, STEPS)
    return {path.relative_to(last).as_posix(): sha256_file(path) for path in last.rglob("*") if path.is_file()}


def _at(place: str, rank: int) -> None:
    """SIGUSR2 to rank 1 when it comes to a function of the start-up."""
    from vlm import train

    plain = getattr(train, place)

    def asked(*args: Any, **options: Any) -> Any:
        if rank == 1:
            _raise_signal(signal.SIGUSR2)
        return plain(*args, **options)

    setattr(train, place, asked)


@pytest.mark.parametrize(
    ("place", "opened", "events"),
    [("check_model", False, []), ("load_model", True, []), ("Loader", True, ["start", "stop"])],
)
def test_a_stop_while_it_starts(place: str, opened: bool, events: list[str], train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, partial(_at, place)) == [REQUEUE, REQUEUE], run.with_suffix(".log").read_text()[-3000:]
    assert (run / "run.json").exists() == opened and [e["event"] for e in read_events(run)] == events
    assert checkpoint.newest(run) is None


def _soon_over(rank: int) -> None:
    # within the margin, and not so near that starting up takes longer
    os.environ[deadline.VARIABLE] = str(int(time.time()) + 29)


def test_it_saves_before_the_job_ends_without_a_signal(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, _soon_over) == [REQUEUE, REQUEUE], run.with_suffix(".log").read_text()[-3000:]
    assert "the job's time is nearly over" in run.with_suffix(".log").read_text()
    # one step is done even where there is no time for it
    assert [e["event"] for e in read_events(run)] == ["start", "step", "checkpoint", "stop"]
    assert checkpoint.newest(run) == checkpoint.step_folder(run, 1)


def test_the_margin_follows_from_what_saves_and_steps_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(deadline.VARIABLE, str(int(time.time()) + 3600))
    found = Deadline(10**9)
    assert (found.margin, found.near()) == (50, False)
    found.stepped(100)
    for seconds in (500, 200):
        found.saved(seconds)
    assert found.margin == 30 + 2 * 500 + 100 and not found.near()
    found.saved(1800)
    assert found.near()
    monkeypatch.delenv(deadline.VARIABLE)
    assert Deadline(10**9).end == float("inf")
    # left over from a job that is gone, or garbage
    for value in ("1", str(int(time.time()) - 5), "soon", "-1", "9" * 400, ""):
        monkeypatch.setenv(deadline.VARIABLE, value)
        assert Deadline(10**9).end == float("inf")
