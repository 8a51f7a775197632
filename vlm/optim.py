"""Optimizer groups and the learning-rate schedule, a pure function of the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from shards.errors import BadInput
from vlm.model.adapter import NEW_TOKENS, PROJECTOR

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(kw_only=True)
class OptimConfig:
    """Section `optim` of a recipe."""

    lr: float = 2e-4
    """Peak learning rate."""
    projector_lr: float = 0.0
    """Peak learning rate of the projector; 0 takes `lr`."""
    token_lr: float = 0.0
    """Peak learning rate of the added tokens' embeddings; 0 takes `lr`."""
    epochs: float = 1.0
    """Passes over the training set; fractions are allowed."""
    max_steps: int = 0
    """Stop after so many optimizer steps; 0 trains all epochs. The schedule still spans all epochs."""
    warmup: float = 0.03
    """Share of the steps with a rising learning rate."""
    schedule: str = "cosine"
    """cosine, linear (both down to 0) or constant, after the warm-up."""
    beta1: float = 0.9
    """AdamW's first moment decay."""
    beta2: float = 0.999
    """AdamW's second moment decay."""
    weight_decay: float = 0.0
    """AdamW's decay, on matrices only; vectors and embeddings never decay."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    max_nonfinite: int = 5
    """Give up after so many steps in a row whose loss or gradient is not finite; none of them updates a weight."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise BadInput(f"optim.schedule: {self.schedule!r} is not one of {', '.join(SCHEDULES)}")
        if self.lr <= 0 or self.epochs <= 0:
            raise BadInput(f"optim.lr={self.lr}, optim.epochs={self.epochs}: both must be above 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise BadInput(f"optim.beta1={self.beta1}, optim.beta2={self.beta2}: both from 0 on, below 1")
        if (
            self.max_nonfinite < 1
            or min(self.max_steps, self.grad_clip, self.weight_decay, self.projector_lr, self.token_lr) < 0
            or not 0 <= self.warmup <= 1
        ):
            raise BadInput(
                "optim: max_steps, grad_clip, weight_decay, projector_lr, token_lr from 0 on, warmup from 0 to 1, "
                "max_nonfinite from 1 on"
            )


def learning_rate_factor(config: OptimConfig, step: int, steps: int) -> float:
    """Factor on the peak rate for optimizer step `step` (from 0) of `steps`."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """AdamW groups of the trainable parameters; each carries its peak rate as `peak_lr`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owners = name.split(".")
            own = config.projector_lr if PROJECTOR in owners else config.token_lr if NEW_TOKENS in owners else 0.0
            peak = own or config.lr
            decay = config.weight_decay if _decays(name, parameter) else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    return [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    owners = name.split(".")
    return parameter.dim() > 1 and "embed_tokens" not in owners and "lm_head" not in owners


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """torch's AdamW, which runs on CPU and GPU alike."""
    return torch.optim.AdamW(parameter_groups(model, config), betas=(config.beta1, config.beta2))


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> float:
    """Set every group's rate for `step`; returns that of a group at `optim.lr`."""
    factor = learning_rate_factor(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return config.lr * factor
