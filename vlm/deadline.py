"""The end of the job's time, as Slurm tells it: where no signal comes before it, a checkpoint must all the same."""

import math
import os
import time

VARIABLE = "SLURM_JOB_END_TIME"
_LEAST_SECONDS = 30.0
# until a save is measured: a slow disk
BYTES_PER_SECOND = 1e8


def margin(save_seconds: float, step_seconds: float) -> float:
    """Seconds before the end at which a job must stop that saves and steps in so many."""
    return _LEAST_SECONDS + 2 * save_seconds + step_seconds


class Deadline:
    """Says when it is time to save and stop: twice the longest save, one step and 30 s before the end.

    Not before a step is done, so that a job whose time is too short gets on all the same. `size` are a checkpoint's
    bytes, from which the time is guessed until a save is measured.
    """

    def __init__(self, size: int) -> None:
        end = os.environ.get(VARIABLE, "")
        self.end = float(end) if end.isdecimal() else math.inf
        if self.end < time.time():
            # of a job that is gone, in whose shell this training was started
            self.end = math.inf
        self.save_seconds, self.step_seconds, self._measured = size / BYTES_PER_SECOND, 0.0, False

    def saved(self, seconds: float) -> None:
        """A save took so long."""
        self.save_seconds = max(seconds, self.save_seconds if self._measured else 0.0)
        self._measured = True

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self.step_seconds = max(seconds, self.step_seconds)

    @property
    def margin(self) -> float:
        """Seconds before the end."""
        return margin(self.save_seconds, self.step_seconds)

    def near(self) -> bool:
        """Whether to save and stop now."""
        return self.step_seconds > 0 and time.time() + self.margin > self.end
