"""The environment of every test, set before torch is imported, and the skips of tests that need a GPU."""

import os

import pytest

os.environ.update(OMP_WAIT_POLICY="passive", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    why = _no_gpu() if marked else ""
    for item in marked if why else ():
        item.add_marker(pytest.mark.skip(reason=why))


def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device"
