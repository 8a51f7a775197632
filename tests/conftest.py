"""The environment of every test, set before torch is imported, and the skips of tests that need a GPU."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

os.environ.update(OMP_WAIT_POLICY="passive", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# what an example takes on a busy core, or with the imports of the first one, tells nothing
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture
def vlm(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: exit code, output, error output."""
    from launch.cli import run

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(each) for each in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A command run in this process listens to stop signals: a pool of a later test could not end its workers.

    Of Ctrl-C nothing is heard in what a shell starts in the background, nor in its children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
