"""A stage: one or more `vlm` commands that run side by side, skipped when what they write already stands."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from launch.cluster import ClusterConfig, executor
from launch.fence import die_with_parent
from vlm.stop import SIGNALS


@dataclass(frozen=True)
class Stage:
    """`commands` are argument lists of `vlm`; `standing` says whether the stage's output is there and verifies."""

    name: str
    commands: Sequence[Sequence[str]]
    standing: Callable[[], bool]


class StageFailed(Exception):
    """A stage ended with `code`; its log has been shown."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"stage {name} failed with exit code {code}")
        self.code = code


def run_command(arguments: Sequence[str]) -> int:
    """Inside a job: run one `vlm` command in a process of its own and return its exit code."""
    # jobs share the cores: threads that spin for each other would burn them
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    command = [sys.executable, "-u", "-m", "launch.cli", *arguments]
    process = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    if "SUBMITIT_FOLDER" in os.environ and threading.current_thread() is threading.main_thread():
        # in place of submitit's handlers, which would end the job, and so the ranks, while they save
        for number in SIGNALS:
            signal.signal(number, lambda number, _: process.send_signal(number))
    try:
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    return code if code >= 0 else 1


def run_stages(stages: Sequence[Stage], cluster: ClusterConfig, folder: Path, say: Callable[[str], None]) -> None:
    """Run stages in order, each as jobs of submitit; raises StageFailed at the first that fails."""
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if stage.standing():
            say(f"{title}: stands, skipped")
            continue
        say(title)
        began = time.monotonic()
        _run(stage, cluster, folder / stage.name, say)
        say(f"{title}: done in {time.monotonic() - began:.0f} s")


def _run(stage: Stage, cluster: ClusterConfig, folder: Path, say: Callable[[str], None]) -> None:
    made = executor(cluster, folder, stage.name)
    jobs = [made.submit(run_command, list(command)) for command in stage.commands]
    try:
        _follow(jobs, say)
        codes = [_code(job) for job in jobs]
    except BaseException:
        for job in jobs:
            job.cancel(check=False)
        raise
    for job, code in zip(jobs, codes, strict=True):
        if code:
            _show_log(job)
            raise StageFailed(stage.name, code)


def _code(job: "submitit.Job[int]") -> int:
    try:
        return int(job.result())
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
        return 1


def _follow(jobs: Sequence["submitit.Job[int]"], say: Callable[[str], None]) -> None:
    """Repeat the jobs' output lines while they run."""
    places = [0] * len(jobs)
    while True:
        over = all(job.done() for job in jobs)
        for i, job in enumerate(jobs):
            places[i] = _copy_lines(Path(job.paths.stdout), places[i], say)
        if over:
            return
        time.sleep(0.2)


def _copy_lines(path: Path, start: int, say: Callable[[str], None]) -> int:
    if not path.exists():
        return start
    with open(path, "rb") as handle:
        handle.seek(start)
        data = handle.read()
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", "replace").splitlines():
        if not line.startswith("submitit "):
            say(f"    {line}")
    return start + len(whole)


def _show_log(job: "submitit.Job[int]", lines: int = 30) -> None:
    path = Path(job.paths.stderr)
    if path.exists():
        tail = path.read_text("utf-8", "replace").splitlines()[-lines:]
        print("\n".join(tail), file=sys.stderr)
    print(f"full log: {path}", file=sys.stderr)
