"""Who may train in a run directory: one at a time, a restarted job before its own orphan, nobody else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import BadInput
from vlm.lock import beside_rank_zero, only_training

HOLD = """
import sys, time
from pathlib import Path
from vlm.lock import only_training
with only_training(Path(sys.argv[1])) as fence:
    print("held", flush=True)
    time.sleep(60)
"""


def _hold(run: Path, job: str, restart: int) -> "subprocess.Popen[str]":
    """Another process that holds `run` as the rank 0 of a Slurm job."""
    environment = {**os.environ, "SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart), "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = _hold(tmp_path, "41", 1)
    yield process
    process.kill()
    process.communicate()


def _be(monkeypatch: pytest.MonkeyPatch, job: str, restart: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


def test_an_orphan_ends_itself_when_its_job_has_begun_again(
    orphan: "subprocess.Popen[str]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _be(monkeypatch, "41", 2)
    with only_training(tmp_path, seconds=0):
        assert orphan.wait(10) == 1
        assert json.loads((tmp_path / "train.lock").read_text())["restart"] == 2
        assert json.loads((tmp_path / "incarnation.json").read_text())["number"] == 3
    assert orphan.stderr is not None
    assert "job 41 (restart 2)" in (said := orphan.stderr.read()) and "orphan" in said


@pytest.mark.parametrize(("job", "restart"), [("42", 5), ("41", 1), ("41", 0)])
def test_others_are_refused_with_the_holder_s_name_and_do_no_harm(
    orphan: "subprocess.Popen[str]", job: str, restart: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tmp_path / "incarnation.json").read_text()
    _be(monkeypatch, job, restart)
    named = rf"at work there: job 41 \(restart 1\), process {orphan.pid} on "
    with pytest.raises(BadInput, match=named), only_training(tmp_path, seconds=0):
        raise AssertionError("both hold it")
    assert orphan.poll() is None and (tmp_path / "incarnation.json").read_text() == before
    if (job, restart) != ("41", 1):
        with pytest.raises(BadInput, match=named):
            beside_rank_zero(tmp_path)


def test_other_ranks_go_on_beside_a_rank_zero_that_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside_rank_zero(tmp_path)  # no Slurm: nobody to wait for
    _be(monkeypatch, "41", 0)
    with only_training(tmp_path):
        beside_rank_zero(tmp_path)


def test_garbage_in_the_files_is_taken_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.lock").write_text('{"job": 1')
    (tmp_path / "incarnation.json").write_text('{"number": "x"}')
    with only_training(tmp_path, seconds=0) as fence:
        assert fence.number == 1
        (tmp_path / "incarnation.json").write_text("[]")
        fence.check()
