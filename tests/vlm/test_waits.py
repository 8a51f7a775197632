"""Steps come from the loader before they are asked for, pinned and as bytes; where they do not, it says so once."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm.data.documents import silent
from vlm.data.loader import DataConfig, Loader
from vlm.data.plan import Plan
from vlm.data.step import Step

STEPS = 60


class Prepared(Loader):
    """A loader whose steps are made by `prepare`, in the thread that makes them."""

    def __init__(self, prepare: Callable[[int], None], device: torch.device | None = None) -> None:
        source: Any = SimpleNamespace(config=DataConfig(ahead=2, workers=1), pixels=SimpleNamespace(size=4))
        super().__init__(source, Plan((STEPS,), 1, 1, 0), 0, 1, device=device)
        self.prepare = prepare

    def step(self, index: int, pool: ThreadPoolExecutor) -> Step:
        self.prepare(index)
        return Step(index, [], [], 1, 1)


class Clock:
    """A clock that only moves when it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("vlm.data.waits.time", found)
    return found


@pytest.mark.parametrize(("reading", "said"), [(0.0, 0), (0.005, 0), (0.02, 1)])
def test_a_slow_reader_is_told_once_and_a_fast_one_not(
    clock: Clock, capsys: pytest.CaptureFixture[str], reading: float, said: int
) -> None:
    turn = threading.Semaphore(0)

    def read(index: int) -> None:
        # only now does the caller wait, so the time is wholly its own
        turn.acquire()
        clock.now += reading if index >= 5 else 100.0

    steps = Prepared(read).steps(0, STEPS)
    for index in range(STEPS):
        turn.release()
        assert next(steps).index == index
        clock.now += 1.0
    assert next(steps, None) is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == said
    assert all("rank 0 waits for 2.0 % of its time" in line and "data.workers (now 1)" in line for line in lines)


def test_steps_are_prepared_ahead_and_no_further() -> None:
    made = threading.Semaphore(0)
    steps = Prepared(lambda index: made.release()).steps(0, STEPS)
    assert next(steps).index == 0
    # the one given, as many as data.ahead says, and the one that waits for room
    for _ in range(1 + 2 + 1):
        assert made.acquire(timeout=60)
    assert not made.acquire(blocking=False)
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == 1 or not any("_fill" in t.name for t in threading.enumerate())


def _row(prepare: Callable[[int], None] = lambda index: None, device: torch.device | None = None) -> Any:
    image = np.full((3, 4, 4), 200, dtype=np.uint8)
    return Prepared(prepare, device)._pack([(silent("a"), [image], None), (silent("b"), [], None)])


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.dtype]]:
    found: list[torch.dtype] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        found.append(tensor.dtype)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    yield found


def test_rows_for_a_gpu_are_pinned_pixels_as_bytes(pinned: list[torch.dtype]) -> None:
    assert _row().pixels.dtype == torch.uint8 and pinned == []
    _row(device=torch.device("cuda", 0))
    assert sorted(map(str, pinned)) == ["torch.int64"] * 3 + ["torch.uint8"]


def test_bytes_are_what_goes_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[torch.dtype, bool]] = []
    to = Tensor.to

    def recorded(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        moved.append((tensor.dtype, non_blocking))
        return to(tensor, device)

    monkeypatch.setattr(Tensor, "to", recorded)
    row = _row().to(torch.device("meta"))
    assert row.pixels.is_meta and row.input_ids.is_meta
    assert sorted(map(str, moved)) == ["(torch.int64, True)"] * 3 + ["(torch.uint8, True)"]
