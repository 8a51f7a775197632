"""Ranks that `vlm train` starts itself: no stop signal is lost while they start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK = """\
import os, signal, sys
from launch.ranks import checked, listen
from vlm import stop
listen()
while not stop.asked():
    signal.sigtimedwait([], 0.05)
os.write(1, f"rank {os.environ['RANK']} obeys, checked {checked()}\\n".encode())
sys.exit(75)
"""

# the real launcher; what it starts is a rank that waits for a stop
LAUNCHER = """\
import os, signal, subprocess, sys
from launch import ranks
from vlm import stop

real = subprocess.Popen
def start(command, **options):
    after = len(started) == {at}
    if after and {before}:
        os.kill(os.getpid(), signal.SIGTERM)
    started.append(real([sys.executable, "-c", RANK], **options))
    if after and not {before}:
        os.kill(os.getpid(), signal.SIGTERM)
    return started[-1]

RANK, started = {rank!r}, []
subprocess.Popen = start
stop.listen()
if {early}:
    os.kill(os.getpid(), signal.SIGUSR2)
try:
    sys.exit(ranks.start_ranks(2, ["train"]))
except stop.Requeue:
    print("no rank was started" if not started else "late")
    sys.exit(75)
"""


def start(**at: object) -> "subprocess.CompletedProcess[str]":
    settings = {"at": 99, "before": True, "early": False, "rank": RANK, **at}
    code = LAUNCHER
    for name, value in settings.items():
        code = code.replace(f"{{{name}!r}}" if name == "rank" else f"{{{name}}}", repr(value))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_a_stop_while_ranks_start_reaches_all_of_them(at: int, before: bool) -> None:
    done = start(at=at, before=before)
    assert done.returncode == 75, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} obeys, checked True" for rank in (0, 1)]
    assert not done.stderr


def test_a_stop_during_the_check_starts_none() -> None:
    done = start(early=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "no rank was started\n", "")
