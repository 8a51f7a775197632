"""Start the ranks of a training on this machine when no launcher did."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from launch.fence import die_with_parent
from vlm.stop import SIGNALS
from vlm.world import in_srun


def in_world() -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    return "RANK" in os.environ or in_srun()


def start_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run `vlm ARGUMENTS` in `ranks` processes, with torchrun's variables; returns the first failing rank's code, or 0.

    A rank that fails takes the others with it, and so does the death of this process. Stop signals reach every rank.
    """
    command = [sys.executable, "-m", "launch.cli", *arguments]
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    processes = [
        subprocess.Popen(
            command,
            # ranks share the cores: threads that spin for each other would burn them
            env={"OMP_WAIT_POLICY": "passive", **os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=die_with_parent,
        )
        for rank in range(ranks)
    ]

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, forward)
    try:
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Until all ranks ended well or one failed. A stop ends every rank with the same code, a moment apart."""
    left = {process.pid: process for process in processes}
    while left:
        pid, status = os.waitpid(-1, 0)
        process = left.pop(pid, None)
        if process is None:
            continue
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code:
            return code if code > 0 else 1
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
