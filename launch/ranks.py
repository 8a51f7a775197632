"""Start the ranks of a training on this machine when no launcher did.

No stop signal is lost on the way: a rank starts with them blocked and lets them in once it listens, and what reaches
this process before a rank is there is passed on afterwards.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from launch.fence import die_with_parent
from vlm import stop
from vlm.stop import SIGNALS
from vlm.world import in_srun

_CHECKED = "RUVLM_CHECKED"
_STOPPED = 75


def in_world() -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    return "RANK" in os.environ or in_srun()


def checked() -> bool:
    """Whether `start_ranks` started this rank, after a check of the recipe."""
    return _CHECKED in os.environ


def listen() -> None:
    """Take note of stop signals from now on, also of those that came while this rank started."""
    stop.listen()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def start_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run `vlm ARGUMENTS` in `ranks` processes, with torchrun's variables; returns the first failing rank's code, or 0.

    A rank that fails takes the others with it, and so does the death of this process. Stop signals reach every rank;
    raises Requeue where one came before.
    """
    command = [sys.executable, "-m", "launch.cli", *arguments]
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), _CHECKED: "1"}
    processes: list[subprocess.Popen[bytes]] = []
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for process in processes:
            _tell(process, number)

    for number in SIGNALS:
        signal.signal(number, forward)
    if stop.asked():
        raise stop.obey()
    try:
        for rank in range(ranks):
            # ranks share the cores: threads that spin for each other would burn them
            own = {"OMP_WAIT_POLICY": "passive", **os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(_start(command, own))
            for earlier in came:
                _tell(processes[-1], earlier)
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(command: Sequence[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    # the mask is inherited: until it listens, a signal would end the rank
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(process: "subprocess.Popen[bytes]", number: int) -> None:
    # not Popen.send_signal, which would reap a rank that has just ended, and `_wait` would wait for it
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Until all ranks ended or one failed. A stop ends every rank with the same code, rank 0 once all is saved."""
    left, stopped = {process.pid: process for process in processes}, 0
    while left:
        pid, status = os.waitpid(-1, 0)
        process = left.pop(pid, None)
        if process is None:
            continue
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code == _STOPPED:
            stopped = code
        elif code:
            return code if code > 0 else 1
    return stopped


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
