"""Two real ranks of `vlm train`, forked from a process that has imported all, so that a test need not wait for that."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["vlm.train", "deepspeed", "launch.cli"])

Prepare = Callable[[int], None]


def run_ranks(
    arguments: list[str], log: Path, prepare: Prepare | None = None, ranks: int = 2, patience: float = 0.0
) -> list[int | None]:
    """`vlm train ARGUMENTS` on every rank after `prepare(rank)`; exit codes, negative for a signal.

    With `ranks=0` the command starts its ranks itself. A rank that fails takes the others with it, as the launcher
    does, after `patience` seconds to end by themselves.
    Standard output and error go to `log`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        _context.Process(target=_rank, args=(rank, ranks, port, arguments, log, prepare))
        for rank in range(max(ranks, 1))
    ]
    for process in processes:
        process.start()
    left = list(processes)
    while left:
        failed = any(process.exitcode for process in processes)
        ended = wait([process.sentinel for process in left], patience if failed else None)
        left = [process for process in left if process.sentinel not in ended]
        for process in processes:
            if process not in left:
                process.join()
        if not ended or (not patience and any(process.exitcode for process in processes)):
            for process in left:
                process.kill()
    return [process.exitcode for process in processes]


def _rank(rank: int, ranks: int, port: int, arguments: list[str], log: Path, prepare: Prepare | None) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if ranks:
        os.environ.update({name: str(value) for name, value in world.items()})
    with open(log, "a", encoding="utf-8") as lines:
        os.dup2(lines.fileno(), 1)
        os.dup2(lines.fileno(), 2)
    code = 1
    try:
        from launch.cli import run

        if prepare:
            prepare(rank)
        code = run(["train", *arguments])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
