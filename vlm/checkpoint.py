"""Checkpoints: trainable weights in PEFT's layout, optimizer state as safetensors, a manifest of digests written last.

No pickle is written or read. Optimizer state is gathered whole, so a checkpoint does not depend on the number of
ranks or on the ZeRO stage. A checkpoint exists once its MANIFEST.json does; `latest` moves only then.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards.errors import BadInput
from shards.files import read_json, sync_folder, verify_manifest, write_atomic, write_json, write_manifest
from vlm.engine import MOMENTS, Engine
from vlm.model.adapter import save_adapter


@dataclass(kw_only=True)
class CheckpointConfig:
    """Section `checkpoint` of a recipe."""

    every: int = 100
    """Optimizer steps between two checkpoints; the last step always writes one."""
    keep: int = 2
    """Newest checkpoints that are kept; 0 keeps all."""
    keep_every: int = 0
    """Besides, keep those whose step is a multiple of this for good; 0 keeps none so."""
    best: bool = True
    """Besides, save and keep the one with the lowest held-out loss."""
    background: bool = True
    """Write files while the next steps run; the last save, and one on a stop, are waited for."""

    def __post_init__(self) -> None:
        if self.every < 1 or min(self.keep, self.keep_every) < 0:
            raise BadInput(
                f"checkpoint.every={self.every} must be at least 1, checkpoint.keep={self.keep} and "
                f"checkpoint.keep_every={self.keep_every} at least 0"
            )


@dataclass(frozen=True)
class State:
    """`state.json`: what a resumed run must agree with, and what it goes on from.

    `updates` counts the steps that changed weights: fewer than `step` where a gradient was not finite. `evaluated` is
    the last step whose held-out loss is known, `best_step` that of the lowest one, `best_loss`.
    """

    step: int
    plan: str
    base: str
    seed: int
    supervised_tokens: int
    updates: int = 0
    skipped: int = 0
    nonfinite: int = 0
    evaluated: int = 0
    best_step: int = 0
    best_loss: float | None = None
    loss_scale: dict[str, float] = field(default_factory=dict)


_FOLDERS = "step-" + 8 * "[0-9]"


def step_folder(run: Path, step: int) -> Path:
    """RUN/checkpoints/step-00000100."""
    return run / "checkpoints" / f"step-{step:08d}"


def newest(run: Path, damaged: list[str] | None = None) -> Path | None:
    """The newest checkpoint whose every digest is right; damaged and unfinished ones are passed over.

    `damaged` takes one line for each damaged one, with the file's name.
    """
    for folder in sorted((run / "checkpoints").glob(_FOLDERS), reverse=True):
        if (folder / "MANIFEST.json").exists():
            problems = verify_manifest(folder)
            if not problems:
                return folder
            if damaged is not None:
                damaged.append(f"{folder}: {problems[0]}")
    return None


def read_state(folder: Path) -> State:
    """The state of a verified checkpoint; BadInput where another version wrote it."""
    try:
        return State(**read_json(folder / "state.json"))
    except TypeError as error:
        raise BadInput(f"{folder / 'state.json'}: of another version ({error}); use another run directory") from None


def begin(model: nn.Module, gathered: dict[str, Tensor], folder: Path) -> None:
    """Make a checkpoint's folder, with the `adapter/` that others read where an adapter is trained.

    Apart from `commit` because PEFT takes it from the module itself, which the next step changes.
    """
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "optimizer").mkdir(parents=True)
    save_adapter(model, _weights(gathered), folder)


def commit(
    gathered: dict[str, Tensor], folder: Path, state: State, config: CheckpointConfig, allowed: Callable[[], None]
) -> None:
    """Write the rest of a checkpoint that is begun, seal it, move `latest` and `best` to it, and remove old ones.

    `allowed` is called just before the seal, which it may prevent by ending the process.
    """
    save_file(gathered, folder / "optimizer" / "state.safetensors")
    if not (folder / "adapter").exists():
        save_file(_weights(gathered), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "state.json", asdict(state))
    allowed()
    write_manifest(folder)
    sync_folder(folder.parent)
    write_atomic(folder.parent / "latest", folder.name + "\n")
    point_at_best(folder.parents[1], state)
    _prune(folder.parent, config, folder.name, state.best_step)


def point_at_best(run: Path, state: State) -> None:
    """Write RUN/checkpoints/best where the best step's checkpoint stands: it may have been evaluated after its save."""
    best = step_folder(run, state.best_step)
    if (best / "MANIFEST.json").exists():
        write_atomic(best.parent / "best", best.name + "\n")


def _weights(gathered: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removesuffix("/param"): t for n, t in gathered.items() if n.endswith("/param")}


def _prune(folder: Path, config: CheckpointConfig, newest: str, best_step: int) -> None:
    # what is numbered above the newest was damaged, or the run would have resumed from it
    found = [p for p in sorted(folder.glob(_FOLDERS)) if p.name <= newest]
    whole = [p for p in found if (p / "MANIFEST.json").exists()]
    for old in whole[: -config.keep] if config.keep else []:
        step = int(old.name.removeprefix("step-"))
        if not (config.best and step == best_step) and not (config.keep_every and step % config.keep_every == 0):
            _remove(old)
    # what a kill has left of a save or of a removal
    for torn in found:
        if torn not in whole:
            _remove(torn)


def _remove(old: Path) -> None:
    # the new checkpoint stands: one that cannot be removed, being read or gone already, must not end the training
    try:
        # the marker goes first: a half-deleted checkpoint must not look whole
        (old / "MANIFEST.json").unlink(missing_ok=True)
        shutil.rmtree(old)
    except FileNotFoundError:
        pass
    except OSError as error:
        print(f"{old}: cannot be removed ({error.strerror}); the next save tries again", file=sys.stderr, flush=True)


def gather_trainable(model: nn.Module) -> dict[str, Tensor]:
    """`NAME/param`, `NAME/exp_avg`, `NAME/exp_avg_sq` in float32, whole, on rank 0's CPU; collective, {} elsewhere."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    gathered = {}
    for name, parameter in _trainable(model):
        for key in ("param", *MOMENTS):
            whole = (
                safe_get_full_fp32_param(parameter) if key == "param" else safe_get_full_optimizer_state(parameter, key)
            )
            # one at a time off the device: all of them together need not fit there
            if dist.get_rank() == 0:
                gathered[f"{name}/{key}"] = whole.detach().float().cpu().contiguous().clone()
    return gathered


def size(model: nn.Module) -> int:
    """Bytes that a checkpoint of `model` takes, about: weights and moments, and the weights again for others."""
    return 4 * (2 + len(MOMENTS)) * sum(getattr(p, "ds_numel", p.numel()) for _, p in _trainable(model))


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def load_parameters(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into a model that DeepSpeed has not wrapped yet.

    BadInput where names or shapes differ.
    """
    path = folder / "optimizer" / "state.safetensors"
    try:
        opened = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: no safetensors file ({error}); remove this checkpoint") from None
    with opened as saved:
        names, wanted = set(saved.keys()), dict(_trainable(model))
        if odd := min(names ^ {f"{n}/{key}" for n in wanted for key in ("param", *MOMENTS)}, default=None):
            raise BadInput(
                f"{path}: trainable weights differ from the recipe's, first {odd}; use another run directory"
            )
        for name, parameter in wanted.items():
            tensor = saved.get_tensor(f"{name}/param")
            if tensor.shape != parameter.shape:
                found, wants = tuple(tensor.shape), tuple(parameter.shape)
                raise BadInput(f"{path}: {name} is {found}, the recipe's {wants}; use another run directory")
            with torch.no_grad():
                parameter.copy_(tensor)


def load_optimizer(engine: Engine, model: nn.Module, folder: Path, updates: int) -> None:
    """Restore float32 weights and AdamW's moments after `updates` steps, for any world size and ZeRO stage."""
    saved = load_file(folder / "optimizer" / "state.safetensors")
    engine.set_steps_done(updates)
    for name, parameter in _trainable(model):
        _set(parameter, saved[f"{name}/param"], None)
        for key in MOMENTS:
            _set(parameter, saved[f"{name}/{key}"], key)


def _set(parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    if not hasattr(parameter, "ds_id"):
        parameter.set_full_hp_param(value.to(parameter.device), key)  # type: ignore[attr-defined]
        return
    # DeepSpeed's setter for whole ZeRO-3 tensors fails where the last rank's part is padded: cut our own
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    part = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    padded = torch.zeros(part * dist.get_world_size())
    padded[: value.numel()] = value.flatten()
    mine = padded.narrow(0, part * dist.get_rank(), part).to(parameter.ds_tensor.device)  # type: ignore[attr-defined]
    if key is None:
        safe_set_local_fp32_param(parameter, mine)
    else:
        safe_set_local_optimizer_state(parameter, mine, key)


def describe(run: Path) -> list[dict[str, Any]]:
    """Every checkpoint of a run with its step and whether it verifies."""
    folders = sorted((run / "checkpoints").glob(_FOLDERS))
    return [{"step": int(f.name.removeprefix("step-")), "problems": verify_manifest(f)} for f in folders]
