"""One Slurm of two nodes for all tests of this folder."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.get_closest_marker("slurm")]
    why = missing() if here else ""
    for item in here if why else ():
        item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # a short path: sockets lie in it, and those have 107 bytes
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, running(Path(folder) / "s") as started:
        yield started
