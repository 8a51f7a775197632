"""Bytes on one GPU of R, by part, as DeepSpeed holds them.

weights: in the recipe's dtype (÷ R in ZeRO-3). gradients: of the trained ones, in that dtype (÷ R from ZeRO-2);
before ZeRO-3 twice where a step has several micro-batches, as the sum so far and the last one's lie side by side.
optimizer: a float32 master copy and AdamW's two moments, 12 bytes (÷ R from ZeRO-1). activations: a micro-batch's, as
`activations.peak` finds them. buffers: what gradients are reduced in during the backward pass, two buckets where
communication overlaps with it; in ZeRO-3 on several GPUs also the weights that are gathered at a time, and a bucket's
gradients laid out for the reduction. step: what the optimizer makes for itself, when activations and buffers are gone.

What the file offloads to the CPU is left out. Source: DeepSpeed 0.19's runtime/zero, torch 2.13's foreach AdamW.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm.estimate.activations import Peak
from vlm.estimate.work import Parameters
from vlm.model.adapters.quantised import BYTES

_OPTIMIZER_BYTES = 12


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. `total` is the peak: weights, gradients and optimizer, which stay, and activations with buffers
    or the step, whichever is more. `micro_batch_tokens`: the most that fits, 0 where nothing does."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    step: int
    total: int
    micro_batch_tokens: int


@dataclass(frozen=True)
class Zero:
    """Memory under one DeepSpeed configuration: `zero` is its section `zero_optimization`, `item` a weight's bytes.

    `micro_batches` are those of a step.
    """

    zero: dict[str, Any]
    parameters: Parameters
    ranks: int
    item: int
    quantised: bool
    micro_batches: int = 1

    def memory(self, peak: Peak, rows: Sequence[tuple[int, Peak]], gpu_bytes: float) -> Memory:
        """With a micro-batch of `peak`; `rows` are the peaks of rows of so many tokens, rising, by which the largest
        that fits is found."""
        weights, gradients, optimizer, step = self.weights(), self.gradients(), self.optimizer(), self.step()
        stays, activations = weights + gradients + optimizer, max(peak.forward, peak.backward)
        held = self.held(peak)
        room = gpu_bytes - stays
        fits = fit([(tokens, self.held(each)) for tokens, each in rows], room) if step <= room else 0
        total = stays + max(held, step)
        return Memory(weights, gradients, optimizer, activations, held - activations, step, total, fits)

    def weights(self) -> int:
        if self._offloads("offload_param"):
            return 0
        small = self.parameters.linear["language_model"][0] if self.quantised else 0
        whole = (self.parameters.total - small) * self.item + small * BYTES
        return int(whole) // (self.ranks if self.stage >= 3 else 1)

    def gradients(self) -> int:
        # ZeRO-3 keeps them where the optimizer is
        if self.stage >= 3 and self._offloads("offload_optimizer"):
            return 0
        copies = 2 if self.stage < 3 and self.micro_batches > 1 else 1
        return (self.share if self.stage >= 2 else self.parameters.trained) * self.item * copies

    def optimizer(self) -> int:
        return 0 if self._offloads("offload_optimizer") else self.share * _OPTIMIZER_BYTES

    def step(self) -> int:
        """What an optimizer step makes: float32 gradients unless they are, and AdamW's denominators."""
        if self._offloads("offload_optimizer"):
            return 0
        group = min(self.share, int(self.zero.get("sub_group_size", 1e9))) if self.stage >= 3 else self.share
        # the norm is taken of one gradient at a time, in float64
        return max(8 * max(self.parameters.sizes, default=0), group * ((4 if self.item < 4 else 0) + 4))

    def held(self, peak: Peak) -> int:
        """A micro-batch's activations and buffers at the worst moment."""
        return self._gathered() + max(peak.forward + self._bucket(), peak.backward + self._buckets())

    @property
    def keeps_inputs(self) -> bool:
        """Whether linear layers keep their inputs even where the weight is frozen."""
        return self.stage >= 3 and bool(self.zero.get("memory_efficient_linear", True))

    @property
    def stage(self) -> int:
        return int(self.zero["stage"])

    @property
    def share(self) -> int:
        """Trained weights of one rank."""
        return self.parameters.trained // self.ranks

    def _offloads(self, part: str) -> bool:
        return bool(self.zero.get(part, {}).get("device", "none") != "none")

    def _bucket(self) -> int:
        """What stays in the forward pass."""
        return int(self.zero.get("reduce_bucket_size", 5e8)) * self.item if self.stage >= 3 else 0

    def _buckets(self) -> int:
        size = int(self.zero.get("reduce_bucket_size", 5e8)) * self.item
        if self.stage >= 3:
            return size + (min(size, self.parameters.trained * self.item) if self.ranks > 1 else 0)
        return size * (2 if self.zero.get("overlap_comm", False) else 1)

    def _gathered(self) -> int:
        # one rank has every weight whole already
        if self.stage < 3 or (self.ranks == 1 and not self._offloads("offload_param")):
            return 0
        return min(self.parameters.total, int(self.zero.get("stage3_max_live_parameters", 1e9))) * self.item


def fit(points: Sequence[tuple[int, int]], room: float) -> int:
    """Most tokens of a row that takes no more than `room`, by `points` (tokens, bytes), rising; rounded down to 128.

    0 where even the first point is too large.
    """
    tokens, sizes = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if room < sizes[0]:
        return 0
    more = max(0.0, room - sizes[-1]) * (tokens[-1] - tokens[-2]) / max(1.0, sizes[-1] - sizes[-2])
    return max(int(tokens[0]), int(np.interp(room, sizes, tokens) + more) // 128 * 128)
