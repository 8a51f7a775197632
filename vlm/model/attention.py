"""Attention over one flat row of documents, with a sliding window and grouped queries.

A row holds documents end to end. A document is one *segment*, or a *shared prefix* followed by segments that each
see the prefix and themselves only, so that every question about an image pays for the image once. FlashAttention-2
needs no mask for this: its causal mask is aligned to the bottom right, so a segment whose keys are `prefix +
segment` is plain varlen attention with more keys than queries.

Source: Dao, "FlashAttention-2" (2023); Jiang et al., "Mistral 7B" (2023) for the window.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from shards.errors import BadInput

PACKED = "ruvlm_packed"


@dataclass(frozen=True)
class Segment:
    """Queries `[start, end)` of the row; keys are the row's `[prefix_start.

    Prefix_end)` followed by the queries' own.
    """

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
    (total keys,) or None where no prefix is shared, `masks` one bool (L, L) for each document that needs one.
    """

    segments: list[Segment]
    documents: list[tuple[int, int]]
    window: int | None = None
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

    def masks(self, device: torch.device) -> list[Tensor | None]:
        """A bool mask (L, L) for each document, None where plain causal attention says the same."""
        if "masks" not in self._cache:
            self._cache["masks"] = [self._mask(a, b, device) for a, b in self.documents]
        return self._cache["masks"]  # type: ignore[return-value]

    def _mask(self, start: int, end: int, device: torch.device) -> Tensor | None:
        segments = [s for s in self.segments if start <= s.start < end]
        length = end - start
        window = self.window or length
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


def sdpa_packed(q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, layout: Layout, scale: float) -> Tensor:
    """Per-document scaled dot-product attention, the reference back end: `(heads, T, head_dim)` in, `(T.

    Heads, D)` out.
    """
    grouped = k_GTD.shape[0] != q_HTD.shape[0]
    rows = []
    for (a, b), mask in zip(layout.documents, layout.masks(q_HTD.device), strict=True):
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


def torch_varlen(q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, layout: Layout, scale: float) -> Tensor:
    """torch's FlashAttention-2 kernel; shapes as `sdpa_packed`."""
    from torch.nn.attention.varlen import varlen_attn

    cu_q, cu_k, max_q, max_k, _ = layout.varlen(q_HTD.device)
    q, k, v = _varlen_inputs(q_HTD, k_GTD, v_GTD, layout)
    # the kernel's (W, 0) sees W + 1 keys, transformers' sliding_window counts the query itself
    left = -1 if layout.window is None else layout.window - 1
    out = varlen_attn(
        q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=(left, 0), enable_gqa=k.shape[1] != q.shape[1]
    )
    assert isinstance(out, Tensor)
    return out


def flash_varlen(q_HTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, layout: Layout, scale: float) -> Tensor:
    """flash-attn's variable-length kernel; shapes as `sdpa_packed`."""
    from flash_attn import flash_attn_varlen_func

    cu_q, cu_k, max_q, max_k, _ = layout.varlen(q_HTD.device)
    q, k, v = _varlen_inputs(q_HTD, k_GTD, v_GTD, layout)
    left = -1 if layout.window is None else layout.window - 1
    out: Tensor = flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=True, window_size=(left, 0)
    )
    return out


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]] = {
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
    _chosen = name
    return name


def _flash_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("flash_attn") is not None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a flat row: query (1, heads, T, head_dim) → (1, T, heads, head_dim)."""
    assert query.shape[0] == 1 and attention_mask is None
    return BACKENDS[_chosen](query[0], key[0], value[0], layout, scaling)[None], None


AttentionInterface.register(PACKED, packed_attention)
