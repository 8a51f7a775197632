"""A stop asked for by signal, agreed on by all ranks, obeyed after a checkpoint.

Slurm sends SIGUSR2 before the time limit (`--signal`) and SIGTERM at preemption, not to every rank at the same moment,
so ranks agree by a reduction at the end of each step.
"""

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Requeue(Exception):
    """The work stopped on request with its state saved; the same command goes on from there."""


class StopRequest:
    """Catches the stop signals from its construction on."""

    def __init__(self) -> None:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop. Collective."""
        from vlm.engine import all_reduce_sum

        return all_reduce_sum(float(self.asked)) > 0
