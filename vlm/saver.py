"""Saves checkpoints while the training goes on: a thread of rank 0 writes what was gathered.

The thread takes part in no collective and draws no random number, so that steps beside it come out the same.
"""

import shutil
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from vlm import checkpoint
from vlm.checkpoint import CheckpointConfig, State, step_folder
from vlm.engine import all_reduce_sums
from vlm.stop import Fault

# how long ranks ask at most before they say again that they are alive
_TURN_SECONDS = 1.0
# a disk that has not taken a checkpoint by then hangs: the watchdog may end the job
_HANGS_SECONDS = 3600.0


class Saver:
    """Writes checkpoints of `model` into `run`, one after the other; all ranks hold one and call it alike.

    `alive` is called while ranks wait. `told(state, seconds, stall)` is called on rank 0 once a checkpoint stands, from
    the thread that wrote it: seconds of the whole save, and those that the steps waited for it. `allowed` is called
    there just before a checkpoint is sealed, which it may prevent by ending the process.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Path,
        config: CheckpointConfig,
        alive: Callable[[], None] = lambda: None,
        told: Callable[[State, float, float], None] = lambda state, seconds, stall: None,
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.run, self.config, self.alive, self.told = model, run, config, alive, told
        self.allowed = allowed
        self._writing: Path | None = None
        self._thread: threading.Thread | None = None
        self.problem: str | None = None

    @property
    def failed(self) -> bool:
        """On rank 0: whether the save in flight has come to nothing; `wait` raises it on every rank."""
        return self.problem is not None

    def save(self, state: State, background: bool = False) -> Path:
        """Save `state`; collective. Returns the checkpoint's folder, with `background` before it is whole.

        Waits for an earlier save first. Raises Fault on every rank where the disk took one of them not: the checkpoints
        before it stand.
        """
        began = time.perf_counter()
        self.wait()
        folder = self._writing = step_folder(self.run, state.step)
        gathered = checkpoint.gather_trainable(self.model)
        if dist.get_rank() == 0:
            self._attempt(lambda: checkpoint.begin(self.model, gathered, folder))
            if not self.failed:
                stall = time.perf_counter() - began if background else None
                self._thread = threading.Thread(target=self._write, args=(gathered, state, began, stall), name="saver")
                self._thread.start()
        if not background:
            self.wait()
        return folder

    def wait(self) -> None:
        """Until the save in flight, if there is one, is whole; collective. Raises Fault as `save` does."""
        began = time.monotonic()
        while self._writing:
            writing, failed = all_reduce_sums([float(self._is_writing()), float(self.failed)])
            if not writing:
                folder, self._writing = self._writing, None
                if failed:
                    # the first rank that ends takes the others with it: each must know why
                    reason = [self.problem]
                    dist.broadcast_object_list(reason)
                    raise Fault(f"{folder}: the checkpoint could not be written: {reason[0]}")
            elif time.monotonic() - began < _HANGS_SECONDS:
                self.alive()

    def close(self) -> None:
        """Before this rank ends alone: let it finish what it writes, or the next training would find it at work."""
        if self._thread is not None:
            self._thread.join()

    def _is_writing(self) -> bool:
        if self._thread is None:
            return False
        self._thread.join(_TURN_SECONDS)
        if self._thread.is_alive():
            return True
        self._thread = None
        return False

    def _write(self, gathered: dict[str, Tensor], state: State, began: float, stall: float | None) -> None:
        def write() -> None:
            checkpoint.commit(gathered, step_folder(self.run, state.step), state, self.config, self.allowed)
            seconds = time.perf_counter() - began
            self.told(state, seconds, seconds if stall is None else stall)

        self._attempt(write)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            # every rank must hear of it, also of what nobody expected
            if not isinstance(error, OSError | SafetensorError):
                traceback.print_exc()
            if self._writing and not (self._writing / "MANIFEST.json").exists():
                shutil.rmtree(self._writing, ignore_errors=True)
            self.problem = str(error) or repr(error)
