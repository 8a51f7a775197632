"""Parts of a training step by themselves: G0 the device's ceilings, G1 attention, G3 the loss."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.sizes import Sizes, median, seconds, wait
from benchmarks.peers import mix_batches
from benchmarks.train import Figure
from vlm.data.documents import IGNORE
from vlm.model.attention import Layout, Segment, sdpa_packed, torch_varlen
from vlm.model.loss import Head, chunked_loss


def ceilings(sizes: Sizes) -> Iterator[Figure]:
    """G0."""
    yield median("G0 bf16 matrix product", matrix_product(sizes), "TFLOP/s")
    source, target = (torch.empty(sizes.matrix**2 * 16, dtype=torch.uint8, device=sizes.device) for _ in range(2))
    taken = seconds({"copy": lambda: target.copy_(source)}, 4 * sizes.rounds)["copy"]
    yield median("G0 device copy, read and write", (2 * source.numel() / t / 1e9 for t in taken), "GB/s")


def matrix_product(sizes: Sizes) -> list[float]:
    """TFLOP/s of each round."""
    n = sizes.matrix
    a, b = (torch.randn(n, n, dtype=sizes.dtype, device=sizes.device) for _ in range(2))
    taken = seconds({"product": lambda: a @ b}, 4 * sizes.rounds)["product"]
    return [2 * n**3 / t / 1e12 for t in taken]


def attention(sizes: Sizes) -> Iterator[Figure]:
    """G1: one layer, forward and backward, on a row of samples."""
    with torch.device(sizes.device):
        yield from _attention(sizes)


def _attention(sizes: Sizes) -> Iterator[Figure]:
    shape, head_dim = sizes.shape, sizes.shape.hidden // sizes.shape.heads
    lengths = _fill(mix_batches(1, sizes.scale, sizes.shortest, grouped=False)[0], sizes.row)
    bounds = [0, *accumulate(lengths)]
    spans = list(pairwise(bounds))
    layout = Layout([Segment(a, b) for a, b in spans], spans)
    heads = (shape.heads, shape.key_heads, shape.key_heads)
    q, k, v = (torch.randn(n, sizes.row, head_dim, dtype=sizes.dtype, requires_grad=True) for n in heads)
    scale, window = head_dim**-0.5, shape.window
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(sizes.row)
    distance = place[:, None] - place[None, :]
    mask = (distance >= 0) & (distance < (window or sizes.row)) & (owner[:, None] == owner[None, :])
    kernel = torch_varlen if sizes.device == "cuda" else sdpa_packed
    ways: dict[str, Callable[[], Tensor]] = {
        "varlen": lambda: kernel(q, k, v, layout, scale, window),
        "dense mask": lambda: F.scaled_dot_product_attention(q[None], k[None], v[None], mask, enable_gqa=True),
    }
    if sizes.device == "cuda":
        ways["flex"] = _flex(q, k, v, owner, window)
    expected = ways["dense mask"]()[0].transpose(0, 1)
    error = float((ways["varlen"]() - expected).detach().abs().max())
    if not error <= 0.05:
        raise RuntimeError(f"the ways do not agree: {error}")
    taken = seconds({name: partial(_there_and_back, way) for name, way in ways.items()}, sizes.rounds)
    keys = sum(sum(min(i + 1, window or i + 1) for i in range(n)) for n in lengths)
    done = 12 * shape.hidden * keys
    yield median("G1 varlen attention", (done / t / 1e12 for t in taken["varlen"]), "TFLOP/s")
    for name in taken.keys() - {"varlen"}:
        ratios = (a / b for a, b in zip(taken[name], taken["varlen"], strict=True))
        yield median(f"G1 {name} ÷ varlen", ratios, goal="above 1")


def _there_and_back(way: Callable[[], Tensor]) -> None:
    way().sum().backward()


def _flex(q: Tensor, k: Tensor, v: Tensor, owner: Tensor, window: int | None) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < (window or len(owner))) & (owner[query] == owner[key])

    blocks = create_block_mask(seen, None, None, len(owner), len(owner), device=q.device)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q[None], k[None], v[None], block_mask=blocks, enable_gqa=True)


def _fill(lengths: Sequence[int], row: int) -> list[int]:
    filled: list[int] = []
    while sum(filled) + lengths[len(filled) % len(lengths)] < row:
        filled.append(lengths[len(filled) % len(lengths)])
    return [*filled, row - sum(filled)]


def loss_memory(sizes: Sizes) -> Iterator[Figure]:
    """G3: memory that the loss takes over its inputs, forward and backward, a quarter of the row supervised."""
    with torch.device(sizes.device):
        yield from _loss_memory(sizes)


def _loss_memory(sizes: Sizes) -> Iterator[Figure]:
    shape = sizes.shape
    weight = torch.randn(shape.vocabulary, shape.hidden, dtype=sizes.dtype) * 0.02
    hidden = torch.randn(sizes.row, shape.hidden, dtype=sizes.dtype, requires_grad=True)
    labels = torch.randint(0, shape.vocabulary, (sizes.row,))
    labels[torch.arange(sizes.row) % 4 > 0] = IGNORE
    kept = (labels != IGNORE).nonzero().squeeze(1)
    ways: dict[str, Callable[[], Tensor]] = {
        "chunked": lambda: chunked_loss(hidden[kept], Head(weight), labels[kept]),
        "full": lambda: F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum"),
    }
    losses = {name: float(way().detach()) for name, way in ways.items()}
    if not abs(losses["chunked"] / losses["full"] - 1) <= 1e-3:
        raise RuntimeError(f"the ways do not agree: {losses}")
    taken = seconds({name: partial(_there_and_back, way) for name, way in ways.items()}, sizes.rounds)
    ratios = (a / b for a, b in zip(taken["full"], taken["chunked"], strict=True))
    yield median("G3 time, full logits ÷ chunked", ratios)
    if sizes.device == "cuda":
        peaks = {name: peak_gib(partial(_there_and_back, way)) for name, way in ways.items()}
        yield Figure("G3 loss memory", peaks["chunked"], "GiB")
        share = peaks["chunked"] / peaks["full"]
        yield Figure("G3 loss memory, chunked ÷ full", share, "", (), "below 0.125")


def peak_gib(work: Callable[[], object]) -> float:
    """Memory that `work` takes at its peak, over what is held before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**30
