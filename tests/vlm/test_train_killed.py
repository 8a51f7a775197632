"""Ranks killed at seeded points of a training, most inside a save: every restart loads, and the end is the same.

Two real ranks are forked from a process that has imported all; one of them is told where to die. A chain restarts a
run until it is done; `RUVLM_KILLS=40` sets the number of kills for each ZeRO stage (default 3).
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shards.files import sha256_file
from tests.vlm.forked import run_ranks
from vlm import checkpoint

STEPS = 4
KILLS = int(os.environ.get("RUVLM_KILLS", "3"))
# (rank, inside what): a save is gathered by all ranks and written by rank 0 beside the next step
DEATHS = ((0, "write"), (0, "step"), (1, "save"), (0, "write"), (0, "save"))
# what changes or settles a file, as the interpreter's C functions are named
BOUNDARIES = (
    "open", "mkdir", "replace", "rename", "unlink", "rmdir", "fsync", "serialize_file", "write", "all_reduce",
    "safe_get_full_optimizer_state", "backward",
)  # fmt: skip


@dataclass(frozen=True)
class Death:
    """SIGKILL of `rank` just before the `at`-th boundary of its first save, of writing it, or of its first step."""

    rank: int
    inside: str
    at: int


def _set_up(death: Death | None, log: Path, rank: int) -> None:
    """In a rank: watch its saves and steps, and let it die where it shall."""
    from vlm import checkpoint
    from vlm.loop import Training
    from vlm.saver import Saver

    at = {death.inside: death.at} if death and death.rank == rank else {}
    watched = partial(_watched, log.with_suffix(f".{rank}"))
    Saver.save = watched(Saver.save, "save", at.get("save", -1))  # type: ignore[method-assign]
    checkpoint.commit = watched(checkpoint.commit, "write", at.get("write", -1))
    Training.step = watched(Training.step, "step", at.get("step", -1))  # type: ignore[method-assign]


def _train(arguments: list[str], log: Path, death: Death | None = None) -> list[int | None]:
    return run_ranks(arguments, log, partial(_set_up, death, log))


def _watched(log: Path, function: Any, place: str, at: int) -> Any:
    """`function`, whose first run dies at boundary `at`, or else tells how many it passed."""
    seen: list[str] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        name = getattr(argument, "__name__", "") if event == "c_call" else frame.f_code.co_name
        if event in ("c_call", "call") and name in BOUNDARIES:
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(name)

    def first(*arguments: Any) -> Any:
        if seen:
            return function(*arguments)
        sys.setprofile(watch)
        try:
            return function(*arguments)
        finally:
            sys.setprofile(None)
            log.with_suffix(f"{log.suffix}.{place}").write_text(" ".join(seen))

    return first


@dataclass(frozen=True)
class Whole:
    """An undisturbed run, and what a save and a step of it pass by."""

    arguments: list[str]
    folder: Path
    points: dict[tuple[int, str], int]


def _arguments(model: Path, data: Path, stage: str) -> list[str]:
    return [
        "demo", f"model.base={model}", f"data.train={data}", f"engine.deepspeed={stage}", "data.batch_size=6",
        "data.micro_batch_tokens=700", "data.turns=joint", "checkpoint.every=1", "checkpoint.keep=2",
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["zero2", "zero3"])
def whole(
    request: pytest.FixtureRequest, model: Path, russian: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("killed")
    arguments, log = _arguments(model, russian, request.param), folder / "log"
    assert _train([*arguments, f"run={folder / 'run'}"], log) == [0, 0], log.read_text()[-3000:]
    points = {(r, p): len((folder / f"log.{r}.{p}").read_text().split()) for r, p in set(DEATHS)}
    yield Whole(arguments, folder / "run", points)
    shutil.rmtree(folder)


def _digests(run: Path) -> dict[str, str]:
    last = checkpoint.step_folder(run, STEPS)
    return {path.relative_to(last).as_posix(): sha256_file(path) for path in last.rglob("*") if path.is_file()}


def _deaths(whole: Whole, kills: int, seed: int) -> list[Death]:
    """`DEATHS` in turn, each place's spread over its boundaries; shuffled."""
    drawn = random.Random(seed)
    places = [DEATHS[i % len(DEATHS)] for i in range(kills)]
    found = []
    for i, place in enumerate(places):
        count, nth, of = whole.points[place], places[:i].count(place), places.count(place)
        low, high = count * nth // of, max(count * (nth + 1) // of, count * nth // of + 1)
        found.append(Death(*place, drawn.randrange(low, high)))
    drawn.shuffle(found)
    return found


def test_every_restart_loads_and_the_end_is_the_same(whole: Whole, tmp_path: Path) -> None:
    expected = _digests(whole.folder)
    runs, saved = 0, 0
    deaths = _deaths(whole, KILLS, seed=STEPS)
    run, log = tmp_path / "run-0", tmp_path / "log"
    for death in deaths:
        codes = _train([*whole.arguments, f"run={run}"], log, death)
        assert -signal.SIGKILL in codes, f"{death}: {log.read_text()[-3000:]}"
        newest = checkpoint.newest(run)
        step = checkpoint.read_state(newest).step if newest else 0
        assert step >= saved, f"{death} lost step {saved}"
        saved = step
        if saved == STEPS:
            assert _digests(run) == expected, str(death)
            runs, saved = runs + 1, 0
            run = tmp_path / f"run-{runs}"
    assert _train([*whole.arguments, f"run={run}"], log) == [0, 0], log.read_text()[-3000:]
    assert _digests(run) == expected
    inside = sum(death.inside != "step" for death in deaths)
    print(f"{len(deaths)} kills survived, {inside} of them inside a save, in {runs + 1} runs; {whole.points}")
