"""`sbatch slurm/train.sh` on a real Slurm of two nodes: what a cluster does to a job, and the adapter that comes out.

One job suffers every fault in turn, and each of its checkpoints is compared with the undisturbed run's. A job for each
fault takes a quarter of an hour and is asked for by `RUVLM_FAULTS=each`. `RUVLM_FAULT_TABLE` names a JSON file for the
times.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, submit, weights
from tests.vlm.conftest import english, model, russian  # noqa: F401

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not os.environ.get("RUVLM_FAULTS"), reason="takes minutes of its own: make faults"),
]

STEPS, EVERY = 84, 4


@dataclass(frozen=True)
class Row:
    """What a fault cost, in seconds and steps. `held`: Slurm's own wait before it starts a requeued job again."""

    fault: str
    noticed: float | None = None
    held: float | None = None
    started: float | None = None
    lost_steps: int = 0


@dataclass(frozen=True)
class Undisturbed:
    """The run that all others must equal."""

    arguments: list[str]
    checkpoints: dict[int, dict[str, str]]


def _arguments(base: Path, data: Path) -> list[str]:
    return [
        f"model.base={base}", f"data.train={data}", "data.batch_size=2", f"optim.epochs={STEPS * 2 / 24}",
        "data.turns=joint", f"checkpoint.every={EVERY}", "checkpoint.keep=0", "engine.watchdog_seconds=300",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def dying(cluster: Cluster, runs: Path) -> Job:
    """A job whose ranks are killed at once; between its turns it waits while the next fixture trains."""
    return submit(cluster, runs / "dies", [], train="kill -9 $$")


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, runs: Path, dying: Job, model: Path, russian: Path) -> Undisturbed:  # noqa: F811
    arguments = _arguments(model, russian)
    job = submit(cluster, runs / "undisturbed", arguments)
    assert job.end() == "COMPLETED", job.said()[-3000:]
    assert not job.restarts() and len(job.events("start")) == 1
    return Undisturbed(arguments, {step: weights(job.run, step) for step in range(EVERY, STEPS + 1, EVERY)})


def _rank_killed(job: Job) -> None:
    os.kill(job.pids()[1], signal.SIGKILL)


def _preempted(job: Job) -> None:
    job.cluster.call("sbatch", "--partition=high", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=true")


def _slurmd_killed(job: Job) -> None:
    job.cluster.kill("n1")
    _two_more(job)
    # a run this short would be over before Slurm misses the node
    _signal(job, signal.SIGSTOP)


def _slurmd_back(job: Job) -> None:
    _signal(job, signal.SIGCONT)
    job.cluster.start("n1")
    job.cluster.wait("n1", job.cluster.nodes_up)


def _slurmctld_restarted(job: Job) -> None:
    job.cluster.kill("slurmctld")
    _two_more(job)
    with _paused(job):
        job.cluster.start("slurmctld")
        job.cluster.wait("slurmctld", job.cluster.nodes_up)


def _slurmdbd_stopped(job: Job) -> None:
    job.cluster.kill("slurmdbd", signal.SIGTERM)
    _two_more(job)
    job.cluster.start("slurmdbd")


def _submitted_twice(job: Job) -> None:
    with _paused(job):
        second = submit(job.cluster, job.run, ["engine.threads=1"])
        assert second.end() == "FAILED" and second.shown("ExitCode") == "2:0"
        assert f"another training is at work there: job {job.number} (restart 0)" in second.said()
        assert "Traceback" not in second.said() and second.said().count("another training") == 2


@contextmanager
def _paused(job: Job) -> Iterator[None]:
    """The ranks do nothing meanwhile, so that a fast machine is not done before the fault."""
    _signal(job, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(job, signal.SIGCONT)


def _signal(job: Job, number: int) -> None:
    for pid in job.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _two_more(job: Job) -> None:
    there = job.step()
    job.wait("two more steps", lambda: job.step() >= min(there + 2, STEPS))


@dataclass(frozen=True)
class Fault:
    """`strike` a job; where that ends its turn, restarts.jsonl calls it `cause`, and `mend` is done then."""

    strike: Callable[[Job], Any]
    cause: str | None = None
    mend: Callable[[Job], Any] = lambda job: None


FAULTS = {
    "second submission": Fault(_submitted_twice),
    "scancel --signal=USR1": Fault(lambda job: job.cluster.call("scancel", "--signal=USR1", job.number), "stop"),
    "preemption": Fault(_preempted, "preempted"),
    "scontrol requeue": Fault(lambda job: job.cluster.call("scontrol", "requeue", job.number), "requeued"),
    "SIGKILL of a rank": Fault(_rank_killed, "killed"),
    "slurmctld killed and restarted": Fault(_slurmctld_restarted),
    "SIGKILL of a slurmd": Fault(_slurmd_killed, "node", _slurmd_back),
    "slurmdbd stopped for a while": Fault(_slurmdbd_stopped),
}


def _suffer(job: Job, name: str) -> Row:
    """Strike once the job stands between two checkpoints; what it cost until the job makes steps again."""
    fault, there = FAULTS[name], job.step()
    job.wait("a step between two checkpoints", lambda: job.step() >= there + 2 and job.step() % EVERY in (1, 2))
    began, begun = time.time(), len(job.events("start"))
    fault.strike(job)
    if not fault.cause:
        assert job.state() == "RUNNING" and len(job.events("start")) == begun
        return Row(name)
    noticed = job.wait("the end of the turn", lambda: job.state() not in ("RUNNING", ""))
    fault.mend(job)
    again = job.wait("another turn", lambda: job.state() == "RUNNING")
    first = job.wait("steps again", lambda: len(job.events("start")) > begun and job.step() >= _resumed(job) + 1)
    return Row(name, round(noticed - began, 1), round(again - noticed, 1), round(first - again, 1), _lost(job))


def _lost(job: Job) -> int:
    """Steps that were done before the newest start and had to be done again."""
    start = job.events("start")[-1]
    return max(event["step"] for event in job.events("step") if event["time"] < start["time"]) - int(start["step"])


def _resumed(job: Job) -> int:
    return int(job.events("start")[-1]["step"])


def _expect(job: Job, undisturbed: Undisturbed, causes: list[str]) -> None:
    assert job.end() == "COMPLETED", job.said()[-3000:]
    for step, expected in undisturbed.checkpoints.items():
        assert weights(job.run, step) == expected, f"step {step} differs"
    job.wait("the records", lambda: len(job.restarts()) >= len(causes), 60)
    found = [line for line in job.restarts() if line["job"] == job.number]
    assert [line["cause"] for line in found] == causes
    assert all(line["again"] for line in found) and [line["restart"] for line in found] == list(range(len(causes)))


def _tell(rows: list[Row]) -> None:
    for row in rows:
        print(row)
    if path := os.environ.get("RUVLM_FAULT_TABLE"):
        before = json.loads(Path(path).read_text()) if Path(path).exists() else []
        Path(path).write_text(json.dumps([*before, *map(asdict, rows)], indent=1))


def test_a_job_that_only_dies_ends_with_the_reason(undisturbed: Undisturbed, dying: Job) -> None:
    assert dying.end() == "FAILED"
    assert [(line["restart"], line["cause"], line["again"]) for line in dying.restarts()] == [
        (0, "killed", True), (1, "killed", True), (2, "killed", True), (3, "killed", False),
    ]  # fmt: skip
    assert "3 restarts without progress, still at 0" in dying.said()


def test_a_job_survives_every_fault_in_turn(undisturbed: Undisturbed, cluster: Cluster, runs: Path) -> None:
    job = submit(cluster, runs / "chain", undisturbed.arguments)
    rows = [_suffer(job, name) for name in FAULTS]
    _tell(rows)
    _expect(job, undisturbed, [fault.cause for fault in FAULTS.values() if fault.cause])
    # only a rank or node that was lost takes steps with it, and never more than since the last checkpoint
    assert all(row.lost_steps <= EVERY for row in rows)
    assert next(row.lost_steps for row in rows if row.fault == "scancel --signal=USR1") == 0


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RUVLM_FAULTS") != "each", reason="long; RUVLM_FAULTS=each runs it")
@pytest.mark.parametrize("name", FAULTS)
def test_a_job_survives_a_fault(name: str, undisturbed: Undisturbed, cluster: Cluster, runs: Path) -> None:
    job = submit(cluster, runs / name.replace(" ", "-"), undisturbed.arguments)
    _tell([_suffer(job, name)])
    cause = FAULTS[name].cause
    _expect(job, undisturbed, [cause] if cause else [])


@pytest.mark.slow
def test_a_hang_is_named_and_mended(undisturbed: Undisturbed, cluster: Cluster, runs: Path) -> None:
    grace = 30.0
    arguments = [*undisturbed.arguments, "engine.watchdog=5", f"engine.watchdog_seconds={grace}"]
    job = submit(cluster, runs / "hang", arguments)
    job.wait("some steps", lambda: job.step() >= 10)
    stopped = time.time()
    os.kill(job.pids()[1], signal.SIGSTOP)
    job.wait("the hang is named", lambda: bool(job.events("hang")))
    (hang,) = job.events("hang")
    step = median(event["seconds"] for event in job.events("step"))
    limit = max(5 * step, grace)
    # the other ranks get a quarter of the limit to write their stacks
    assert hang["silent_ranks"] == [1] and hang["time"] - stopped < 1.25 * limit + 5 * step + 2
    print(f"hang named after {hang['time'] - stopped:.1f} s, median step {step:.2f} s")
    _expect(job, undisturbed, ["killed"])


@pytest.mark.slow
def test_an_orphan_cannot_write(undisturbed: Undisturbed, cluster: Cluster, runs: Path) -> None:
    """Both ranks outlive their slurmd, asleep; they wake when the job has begun on the other node."""
    job = submit(cluster, runs / "orphan", undisturbed.arguments, "--nodes=1", "--ntasks-per-node=2")
    job.wait("some steps", lambda: job.step() >= 6)
    node, orphans = job.shown("NodeList"), job.pids()
    _signal(job, signal.SIGSTOP)
    cluster.kill(node)
    announced = job.run / "incarnation.json"
    try:
        job.wait("a successor", lambda: json.loads(announced.read_text())["restart"] == 1)
        assert job.shown("NodeList") != node and all(_alive(pid) for pid in orphans)
        steps, saved = len(job.events("step")), sorted((job.run / "checkpoints").iterdir())
    finally:
        for pid in orphans:
            os.kill(pid, signal.SIGCONT)
    woke = time.time()
    ended = job.wait("the orphans' end", lambda: not any(_alive(pid) for pid in orphans), 30)
    print(f"orphans ended after {ended - woke:.1f} s")
    # no checkpoint, and of events at most that of the step they slept in
    assert sorted((job.run / "checkpoints").iterdir()) == saved and len(job.events("step")) <= steps + 1
    cluster.start(node)
    _expect(job, undisturbed, ["node"])
    # announced once while the orphan held the lock, and once with the lock in hand
    assert json.loads(announced.read_text())["number"] == 3


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
