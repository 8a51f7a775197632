"""The environment of every test, set before torch is imported, and the skips of tests that need a GPU."""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.update(OMP_WAIT_POLICY="passive", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A command run in this process listens to stop signals: a pool of a later test could not end its workers."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    why = _no_gpu() if marked else ""
    for item in marked if why else ():
        item.add_marker(pytest.mark.skip(reason=why))


def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device"
