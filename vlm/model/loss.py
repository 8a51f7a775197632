"""Summed next-token cross-entropy without a (tokens, vocabulary) matrix.

The head and the loss are one function, computed a chunk of positions at a time. Its gradients are made in the forward
pass, where a chunk's logits are at hand, and scaled in the backward pass: nothing is computed twice, and a frozen head
costs no weight gradient. Where PEFT trains single rows of the head (tokens that were added), only those rows get one.

torch's own `linear_cross_entropy` is not used: of bfloat16 inputs it returns the sum in bfloat16, off by 1 % at 300
tokens, and it would make the whole head's gradient for a few trained rows.

Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024); Hsu et al., "Liger Kernel" (2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**24
"""Logits held at once: 64 MiB of them in float32."""


@dataclass(frozen=True)
class Head:
    """`weight` (V, D), `bias` (V,) or None; `rows` (R, D) stand in for those of `weight` at `row_ids` (R,)."""

    weight: Tensor
    bias: Tensor | None = None
    row_ids: Tensor | None = None
    rows: Tensor | None = None

    @classmethod
    def of(cls, module: nn.Module) -> "Head | None":
        """What a plain linear head computes with, as it is or under PEFT; None for any other (LoRA's, 4-bit)."""
        if type(module) is nn.Linear:
            return cls(module.weight, module.bias)
        if isinstance(module, ModulesToSaveWrapper) and len(module.active_adapters) == 1:
            return cls.of(module.modules_to_save[module.active_adapters[0]])
        if isinstance(module, TrainableTokensWrapper):
            return cls._of_tokens(module.token_adapter)
        return None

    @classmethod
    def _of_tokens(cls, layer: TrainableTokensLayer) -> "Head | None":
        plain = cls.of(layer.base_layer)
        if plain is None or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
            return None
        name = layer.active_adapters[0]
        ids = torch.tensor(layer.token_indices[name], device=plain.weight.device)
        return cls(plain.weight, plain.bias, ids, layer.trainable_tokens_delta[name].to(plain.weight.dtype))


class HeadLoss(nn.Module):
    """Sum of the cross-entropy of a head's logits, a float32 scalar.

    A module of its own, without parameters, so that ZeRO-3 gathers the head's once for its forward and once for its
    backward pass, however many chunks there are: a rank without a supervised token gathers as often as the others.
    """

    def __init__(self, head: Callable[[], nn.Module], chunk: int | None = None) -> None:
        super().__init__()
        self.head, self.chunk = head, chunk

    def forward(self, hidden_SD: Tensor, labels_S: Tensor) -> Tensor:
        """`hidden_SD`: states of the supervised positions alone; `labels_S`: their next tokens, int64."""
        module = self.head()
        head = Head.of(module)
        if head is None:
            return F.cross_entropy(module(hidden_SD).float(), labels_S, reduction="sum")
        return chunked_loss(hidden_SD, head, labels_S, self.chunk)


def chunked_loss(hidden_SD: Tensor, head: Head, labels_S: Tensor, chunk: int | None = None) -> Tensor:
    """The summed loss, float32. `chunk`: positions at a time, by default as many as `CHUNK_ELEMENTS` allows."""
    chunk = chunk or max(64, CHUNK_ELEMENTS // len(head.weight))
    loss: Tensor = _ChunkedLoss.apply(
        hidden_SD, head.weight, head.bias, head.rows, head.row_ids, labels_S, chunk, torch.is_grad_enabled()
    )
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        row_ids: Tensor | None,
        labels_S: Tensor,
        chunk: int,
        learning: bool,
    ) -> Tensor:
        wanted = [learning and needed for needed in ctx.needs_input_grad[:4]]
        loss = torch.zeros((), dtype=torch.float32, device=hidden_SD.device)
        hidden_grad, weight_grad, bias_grad, rows_grad = (
            # summed over chunks, so in float32; a position's own gradient is written once
            torch.zeros_like(x, dtype=x.dtype if x is hidden_SD else torch.float32)
            if needed and x is not None
            else None
            for x, needed in zip((hidden_SD, weight, bias, rows), wanted, strict=True)
        )
        for at in range(0, len(hidden_SD), chunk):
            hidden, labels = hidden_SD[at : at + chunk], labels_S[at : at + chunk, None]
            logits = F.linear(hidden, weight, bias)
            if rows is not None and row_ids is not None:
                row_bias = None if bias is None else bias[row_ids]
                logits[:, row_ids] = F.linear(hidden, rows, row_bias)
            logits = logits.float()
            norm = logits.logsumexp(1, keepdim=True)
            loss += (norm - logits.gather(1, labels)).sum()
            if not any(wanted):
                continue
            slope = logits.sub_(norm).exp_()
            slope.scatter_add_(1, labels, torch.full_like(norm, -1.0))
            if bias_grad is not None:
                bias_grad += slope.sum(0)
            slope = slope.to(hidden.dtype)
            if rows is not None and row_ids is not None:
                row_slope = slope[:, row_ids]
                if rows_grad is not None:
                    rows_grad += row_slope.T @ hidden
                if hidden_grad is not None:
                    hidden_grad[at : at + chunk] = row_slope @ rows
                slope[:, row_ids] = 0
            if hidden_grad is not None:
                hidden_grad[at : at + chunk] += slope @ weight
            if weight_grad is not None:
                weight_grad += slope.T @ hidden
        sums = ((weight_grad, weight), (bias_grad, bias), (rows_grad, rows))
        ctx.save_for_backward(hidden_grad, *(None if g is None or x is None else g.to(x.dtype) for g, x in sums))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if g is None else g * scale for g in ctx.saved_tensors)
        return (*grads, None, None, None, None)
