"""The step events as TensorBoard curves, beside events.jsonl."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shards.errors import BadInput


def require_extra() -> None:
    """BadInput unless the package is installed."""
    if find_spec("tensorboard") is None:
        raise BadInput("engine.tensorboard: tensorboard is not installed; pip install ruvlm[tensorboard]")


class Board:
    """Writes RUN/tensorboard; what an earlier incarnation wrote past `step` is hidden."""

    def __init__(self, run: Path, step: int) -> None:
        require_extra()
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Every finite number among `figures`."""
        for name, value in figures.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """Write what is still held."""
        self.writer.close()
