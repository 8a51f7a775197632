"""The figures of a run for TensorBoard and Weights & Biases, beside events.jsonl: one interface, the same scalars."""

import os
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from shards.errors import BadInput
from shards.extras import require
from shards.files import read_json, write_json
from vlm.engine import EngineConfig

EXTRAS = ("tensorboard", "wandb")


class Tracker(Protocol):
    """Something that draws curves."""

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Scalars of optimizer step `step`, by name."""

    def close(self) -> None:
        """Write what is still held."""


def require_trackers(config: EngineConfig) -> None:
    """BadInput unless what `engine.tensorboard` and `engine.wandb` ask for is installed, and W&B has a key."""
    for name in EXTRAS:
        if getattr(config, name):
            require(name, name, f"engine.{name}")
    if config.wandb and _wandb_is_online():
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise BadInput("engine.wandb: no key; run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later")


class Board:
    """All trackers of a recipe, for one rank; without any it does nothing."""

    def __init__(self, config: EngineConfig, name: str, run: Path, step: int, recipe: dict[str, Any]) -> None:
        """`step`: where this incarnation of the run starts; `recipe` is shown beside the curves."""
        require_trackers(config)
        self.trackers: list[Tracker] = []
        self._held = ExitStack()
        if config.tensorboard:
            self._add(TensorBoard(run, step))
        if config.wandb:
            self._add(WandB(name, run, recipe))

    def _add(self, tracker: Tracker) -> None:
        self.trackers.append(tracker)
        self._held.callback(tracker.close)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Every number among `figures`, as train/NAME."""
        scalars = {f"train/{n}": v for n, v in figures.items() if isinstance(v, int | float) and n != "step"}
        for tracker in self.trackers:
            tracker.write(step, scalars)

    def close(self) -> None:
        """Write what is still held."""
        self._held.close()


class TensorBoard:
    """Writes RUN/tensorboard; what an earlier incarnation wrote past `step` is hidden."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """As `Tracker`."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """As `Tracker`."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases in project `name`; its id is kept in RUN/wandb.json, so a resumed run goes on in it.

    `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_ENTITY` and the like are honoured. Steps run twice after a restart appear
    twice: the service takes no point back. A service out of reach ends no training.
    """

    def __init__(self, name: str, run: Path, recipe: dict[str, Any]) -> None:
        import wandb

        kept = run / "wandb.json"
        if not kept.exists():
            write_json(kept, {"id": secrets.token_hex(4)})
        self.run: Any = None
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", name),
                name=run.name,
                id=str(read_json(kept)["id"]),
                resume="allow",
                dir=str(run),
                config=recipe,
                settings=wandb.Settings(console="off", save_code=False, disable_git=True),
            )
        except wandb.Error as error:
            print(f"vlm: engine.wandb: {' '.join(str(error).split())}; goes on without it", file=sys.stderr, flush=True)
            return
        # W&B's own step only grows, which a restart from a checkpoint does not
        self.run.define_metric("train/*", step_metric="step")

    def write(self, step: int, figures: dict[str, float]) -> None:
        """As `Tracker`."""
        if self.run:
            self.run.log({"step": step, **figures})

    def close(self) -> None:
        """As `Tracker`."""
        if self.run:
            self.run.finish()


def _wandb_is_online() -> bool:
    return os.environ.get("WANDB_MODE", "online") in ("online", "run", "shared")
