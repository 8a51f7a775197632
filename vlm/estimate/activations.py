"""How much memory a micro-batch's forward and backward pass take: they are run on torch's meta device and watched.

There tensors have shapes and no values, so a model of any size runs in seconds, by the code that trains it: what a
method saves, what is recomputed, what a frozen part drops, all follow from it. Attention alone is a stand-in that saves
and makes what the fused kernels do: no score matrix. What a kernel takes for itself and gives back is not seen.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AttentionInterface, LlavaForConditionalGeneration

from vlm.config import Recipe
from vlm.data.batch import pack
from vlm.data.documents import IGNORE, Document
from vlm.data.images import Pixels
from vlm.model.adapter import trainable
from vlm.model.adapters.prompts import PrefixOptions, PromptOptions
from vlm.model.assemble import Assembly
from vlm.model.attention import Layout
from vlm.model.blocks import prepare_blocks
from vlm.model.load import DTYPES
from vlm.model.packed import PackedLlava
from vlm.model.projector import keep_identity

_SHAPES = "ruvlm_shapes"


def build(recipe: Recipe, config: Any, assembly: Assembly) -> nn.Module:
    """The model as training builds it, on the meta device."""
    config = type(config).from_dict(config.to_dict())
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration._from_config(
            config,
            dtype=DTYPES[recipe.model.dtype],
            attn_implementation={"text_config": _SHAPES, "vision_config": _SHAPES},
        )
        keep_identity(llava.model.multi_modal_projector, config.projector_hidden_act)
        prepare_blocks(llava, recipe.model.checkpoint_blocks)
        model = trainable(llava, recipe.adapter, assembly)
    if recipe.adapter.quantises:
        for layer in llava.model.language_model.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
                layer.forward = partial(_Dequantised.apply, layer.weight)  # type: ignore[method-assign]
    # PEFT makes adapters in float32, DeepSpeed brings all to one type
    return model.to(DTYPES[recipe.model.dtype])


@dataclass(frozen=True)
class Peak:
    """Most bytes that a micro-batch holds in its forward and in its backward pass."""

    forward: int
    backward: int


def peak(model: nn.Module, row: Sequence[Document], pixels: Pixels, recipe: Recipe, inputs_kept: bool = False) -> Peak:
    """What one micro-batch takes beside weights and gradients that stay; `model` is from `build`.

    A gradient counts until it is whole: the engine then takes it. `inputs_kept`: linear layers keep their inputs even
    where the weight is frozen, as those of DeepSpeed's ZeRO-3 do.
    """
    images = [torch.zeros(3, pixels.size, pixels.size, dtype=torch.uint8).numpy()] * sum(d.images for d in row)
    batch = pack(row, images, pixels.size)
    supervised, tokens = int((batch.labels != IGNORE).sum()), batch.tokens
    method = recipe.adapter.options()
    slots = method.virtual_tokens * len(row) if isinstance(method, PromptOptions) else 0
    # what the forward pass asks for by value, in its order: the prompts' places, the row's own, the supervised ones
    found = [slots] * isinstance(method, PrefixOptions) + [tokens] * bool(slots) + [supervised]
    packed = PackedLlava(model, pixels)
    with ExitStack() as held:
        for parameter in packed.parameters():
            if parameter.requires_grad:
                held.callback(parameter.register_post_accumulate_grad_hook(_drop).remove)
        held.enter_context(torch.autograd.set_multithreading_enabled(False))
        held.enter_context(_linear(_Keeping.apply if inputs_kept else torch._C._nn.linear))
        watched = held.enter_context(_Storages([*packed.parameters(), *packed.buffers()], found))
        batch = batch.to(torch.device("meta"))
        loss = packed(batch)
        forward, watched.peak = watched.peak, watched.live
        torch.autograd.backward([loss])
    return Peak(forward, watched.peak)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


class _Attention(torch.autograd.Function):
    """Shapes of a fused kernel: queries (B, H, T, D), keys and values (B, G, T, D) to (B, H, T, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, tokens, width = q.shape
        out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(batch, heads, tokens, dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface; with a layout it is the language model's."""
    if layout and layout.learned:
        key, value = layout.learned(int(module.layer_idx), key, value)  # type: ignore[arg-type]
    if layout and (index := layout.varlen(query.device)[4]) is not None:
        key, value = key.index_select(2, index), value.index_select(2, index)
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_SHAPES, _attention)


class _Dequantised(torch.autograd.Function):
    """A product with a weight that is unpacked for it each time, as bitsandbytes' is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.weight = weight
        return F.linear(x, torch.empty_like(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad @ torch.empty_like(ctx.weight)


class _Keeping(torch.autograd.Function):
    """A linear layer's product as ZeRO-3 has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return torch._C._nn.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        own, flat = ctx.needs_input_grad, grad.flatten(0, -2)
        return (
            grad @ weight if own[0] else None,
            flat.T @ x.flatten(0, -2) if own[1] else None,
            flat.sum(0) if bias is not None and own[2] else None,
        )


@contextmanager
def _linear(function: Callable[..., Tensor]) -> Iterator[None]:
    # DeepSpeed exchanges it the same way, and leaves it so
    before, F.linear = F.linear, function
    try:
        yield
    finally:
        F.linear = before


class _Storages(TorchDispatchMode):
    """Counts the bytes of storages from where an operation makes them to where nobody holds them."""

    def __init__(self, known: Sequence[Tensor], nonzero: Sequence[int]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.nonzero = list(nonzero)
        self.held: dict[int, object] = {tensor.untyped_storage()._cdata: tensor for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            out = torch.empty(self.nonzero.pop(0), 1, dtype=torch.int64, device="meta")
        else:
            out = func(*args, **(kwargs or {}))
        self.see(tree_iter(out))
        return out

    def see(self, made: Any) -> None:
        """Count those that are new."""
        for tensor in made:
            if not isinstance(tensor, Tensor) or tensor.device.type != "meta":
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.held:
                self.held[key] = ref(storage, partial(self._gone, key, size))
                self.live += size
                self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int, _: object) -> None:
        del self.held[key]
        self.live -= size
