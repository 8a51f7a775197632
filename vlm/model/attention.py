"""Attention over one flat row of documents, with a sliding window and grouped queries.

A row holds documents end to end. A document is one *segment*, or a *shared prefix* followed by segments that each
see the prefix and themselves only, so that every question about an image pays for the image once. FlashAttention-2
needs no mask for this: its causal mask is aligned to the bottom right, so a segment whose keys are `prefix +
segment` is plain varlen attention with more keys than queries.

Source: Dao, "FlashAttention-2" (2023); Jiang et al., "Mistral 7B" (2023) for the window.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from shards.errors import BadInput

PACKED = "ruvlm_packed"


@dataclass(frozen=True)
class Segment:
    """Queries `[start, end)` of the row; keys are `[prefix_start, prefix_end)` followed by the queries' own."""

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0

    @property
    def keys(self) -> int:
        return self.prefix_end - self.prefix_start + self.end - self.start


@dataclass
class Layout:
    """Which tokens of a flat row see which; built once for a micro-batch and shared by all layers.

    Tensors are made on first use, on the device of the queries: `cu_q`, `cu_k` int32 (segments + 1,), `key_index` int64
    (total keys,) or None where no prefix is shared, `masks` one bool (L, L) for each document that needs one. The
    window is the layer's, not the row's: Gemma-3 alternates layers with and without one. `learned` puts prefix tuning's
    keys and values into those of a layer (its number, keys, values).
    """

    segments: list[Segment]
    documents: list[tuple[int, int]]
    learned: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    _cache: dict[str, object] = field(default_factory=dict, repr=False)

    def varlen(self, device: torch.device) -> tuple[Tensor, Tensor, int, int, Tensor | None]:
        """`(cu_q, cu_k, max_q, max_k, key_index)` for a variable-length kernel."""
        if "varlen" not in self._cache:
            lengths_q = [s.end - s.start for s in self.segments]
            lengths_k = [s.keys for s in self.segments]
            cu_q, cu_k = (
                torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=device) for n in (lengths_q, lengths_k)
            )
            index = None
            if lengths_q != lengths_k:
                spans = [r for s in self.segments for r in ((s.prefix_start, s.prefix_end), (s.start, s.end))]
                index = torch.cat([torch.arange(a, b) for a, b in spans]).to(device)
            self._cache["varlen"] = (cu_q, cu_k, max(lengths_q), max(lengths_k), index)
        return self._cache["varlen"]  # type: ignore[return-value]

    def masks(self, device: torch.device, window: int | None) -> list[Tensor | None]:
        """A bool mask (L, L) for each document, None where plain causal attention says the same."""
        key = f"masks {window}"
        if key not in self._cache:
            self._cache[key] = [self._mask(a, b, device, window or b - a) for a, b in self.documents]
        return self._cache[key]  # type: ignore[return-value]

    def _mask(self, start: int, end: int, device: torch.device, window: int) -> Tensor | None:
        segments = [s for s in self.segments if start <= s.start < end]
        length = end - start
        if len(segments) == 1 and length <= window:
            return None
        mask = torch.zeros(length, length, dtype=torch.bool, device=device)
        for s in segments:
            keys = torch.cat([torch.arange(s.prefix_start, s.prefix_end), torch.arange(s.start, s.end)]) - start
            query_position = torch.arange(s.keys - (s.end - s.start), s.keys)[:, None]
            key_position = torch.arange(s.keys)[None, :]
            seen = (key_position <= query_position) & (query_position - key_position < window)
            mask[s.start - start : s.end - start, keys.to(device)] = seen.to(device)
        return mask


def sdpa_packed(
    q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    """Per-document scaled dot-product attention, the reference back end.

    Queries `(heads, T, head_dim)`, keys and values `(key heads, T, head_dim)`; returns `(T, heads, head_dim)`. `window`
    counts the keys that a query sees, itself included; None for all before it.
    """
    grouped = k_GTD.shape[0] != q_HTD.shape[0]
    rows = []
    for (a, b), mask in zip(layout.documents, layout.masks(q_HTD.device, window), strict=True):
        q, k, v = q_HTD[None, :, a:b], k_GTD[None, :, a:b], v_GTD[None, :, a:b]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        rows.append(out[0].transpose(0, 1))
    return torch.cat(rows)


def _varlen_inputs(q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    key_index = layout.varlen(q_HTD.device)[4]
    q, k, v = (x.transpose(0, 1) for x in (q_HTD, k_GTD, v_GTD))
    if key_index is not None:
        k, v = k.index_select(0, key_index), v.index_select(0, key_index)
    return q, k, v


def _window_size(window: int | None) -> tuple[int, int]:
    # the kernels' (W, 0) sees W + 1 keys, transformers' sliding_window counts the query itself
    return (-1 if window is None else window - 1, 0)


def torch_varlen(
    q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    """torch's FlashAttention-2 kernel; shapes as `sdpa_packed`."""
    from torch.nn.attention.varlen import varlen_attn

    cu_q, cu_k, max_q, max_k, _ = layout.varlen(q_HTD.device)
    q, k, v = _varlen_inputs(q_HTD, k_GTD, v_GTD, layout)
    options: dict[str, Any] = {}
    if (groups := q.shape[1] // k.shape[1]) > 1:
        if "enable_gqa" in signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:
            # torch 2.11
            k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    window_size = _window_size(window)
    out = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size, **options)
    assert isinstance(out, Tensor)
    return out


def flash_varlen(
    q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    """flash-attn's variable-length kernel; shapes as `sdpa_packed`."""
    from flash_attn import flash_attn_varlen_func

    cu_q, cu_k, max_q, max_k, _ = layout.varlen(q_HTD.device)
    q, k, v = _varlen_inputs(q_HTD, k_GTD, v_GTD, layout)
    out: Tensor = flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=True, window_size=_window_size(window)
    )
    return out


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Layout, float, int | None], Tensor]] = {
    "sdpa": sdpa_packed,
    "torch-varlen": torch_varlen,
    "flash-attn": flash_varlen,
}
_chosen = "sdpa"


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Select the back end for this process and return its name.

    `auto` takes flash-attn where it is installed, else torch's kernel, on a CUDA GPU in 16 bits; per-document SDPA
    elsewhere. Raises BadInput for a name that is unknown or cannot run here.
    """
    global _chosen
    fused = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    if name == "auto":
        name = ("flash-attn" if _flash_installed() else "torch-varlen") if fused else "sdpa"
    if name not in BACKENDS:
        raise BadInput(f"model.attention: unknown back end {name!r}; choose one of auto, {', '.join(BACKENDS)}")
    if name != "sdpa" and not fused:
        raise BadInput(f"model.attention: {name} needs a CUDA GPU and 16-bit weights; use auto or sdpa")
    if name == "flash-attn" and not _flash_installed():
        raise BadInput("model.attention: flash-attn is not installed; pip install flash-attn, or use auto")
    _chosen = name
    return name


def _flash_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("flash_attn") is not None


# the layout changes with every row: a compiled block would be compiled again for each
@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a flat row: query (1, heads, T, head_dim) → (1, T, heads, head_dim).

    Whoever calls the model without a layout gets a TypeError, never a row whose documents see each other.
    """
    if attention_mask is not None or query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise ValueError("packed attention takes one flat row, without a mask and without a cache")
    if dropout or softcap is not None or not getattr(module, "is_causal", True):
        raise ValueError("packed attention has no dropout, no soft cap and is causal")
    if layout.learned:
        key, value = layout.learned(int(module.layer_idx), key, value)  # type: ignore[arg-type]
    return BACKENDS[_chosen](query[0], key[0], value[0], layout, scaling, sliding_window)[None], None


AttentionInterface.register(PACKED, packed_attention)
