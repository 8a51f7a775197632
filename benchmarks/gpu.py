"""What a CUDA GPU reaches in training a 7B LLaVA of random weights, beside what it can do at all.

python -m benchmarks.gpu --out benchmarks/results/gpu.json

G0 the two ceilings: bf16 matrix product and device copy. G1 variable-length attention beside flex attention and a dense
mask. G2 a LoRA step on flat rows beside transformers' padded one, with and without activation checkpointing. G3 the
memory of the loss beside that of full logits.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from benchmarks.shards import describe_machine
from benchmarks.train import Figure, Shape, build_model, documents, figure, language_flop, ours, padded, show, with_lora
from shards.files import write_json
from vlm.data.batch import pack
from vlm.data.documents import IGNORE
from vlm.model.attention import PACKED, Layout, Segment, choose_backend, sdpa_packed, torch_varlen
from vlm.model.blocks import prepare_blocks
from vlm.model.loss import Head, chunked_loss


@dataclass(frozen=True)
class Sizes:
    """What is measured; `SMOKE` runs the same code on a CPU, to see that it runs."""

    device: str
    dtype: torch.dtype
    shape: Shape
    vision: CLIPVisionConfig
    lengths: tuple[int, ...]
    row: int
    matrix: int
    ranks: tuple[int, ...]
    rounds: int


# CLIP ViT-L/14-336 and Mistral-7B; text of 60 to 960 tokens behind 576 of image, about the 665k mix's spread
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
FULL = Sizes(
    "cuda",
    torch.bfloat16,
    Shape("mistral", 4096, 14336, 32, 32, 8, 32000, 4096),
    CLIPVisionConfig(**CLIP_L, image_size=336, patch_size=14),
    (640, 1536, 700, 840),
    16384,
    8192,
    (16, 64, 128),
    5,
)
SMOKE = Sizes(
    "cpu",
    torch.bfloat16,
    Shape("mistral", 64, 128, 2, 4, 2, 512, 64),
    CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                     image_size=28, patch_size=14),
    (20, 60, 24, 30),
    256,
    64,
    (4,),
    1,
)  # fmt: skip
TOWER_TFLOP = 0.44
"""CLIP-L/336 forward and the projector, an image."""


def main() -> None:
    """Entry point; says so and ends where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here: nothing measured")
    sizes = SMOKE if options.smoke else FULL
    torch.set_default_device(sizes.device)
    figures = [*ceilings(sizes), *attention(sizes), *loss_memory(sizes), *steps(sizes)]
    machine = describe_machine() | {"device": _device_name(sizes), "torch": torch.__version__}
    show(figures, str(machine["device"]))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {"machine": machine, "figures": [asdict(f) for f in figures]})


def _device_name(sizes: Sizes) -> str:
    return torch.cuda.get_device_name() if sizes.device == "cuda" else sizes.device


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times of each way, each round running every way once; two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 2):
        for name, way in ways.items():
            _wait()
            start = time.perf_counter()
            way()
            _wait()
            taken[name].append(time.perf_counter() - start)
    return {name: times[2:] for name, times in taken.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ceilings(sizes: Sizes) -> list[Figure]:
    """G0."""
    n = sizes.matrix
    a, b = (torch.randn(n, n, dtype=sizes.dtype) for _ in range(2))
    source, target = (torch.empty(n * n * 16, dtype=torch.uint8) for _ in range(2))
    taken = seconds({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, 4 * sizes.rounds)
    return [
        figure("G0 bf16 matrix product", [2 * n**3 / t / 1e12 for t in taken["product"]], "TFLOP/s"),
        figure("G0 device copy, read and write", [2 * source.numel() / t / 1e9 for t in taken["copy"]], "GB/s"),
    ]


def attention(sizes: Sizes) -> list[Figure]:
    """G1: one layer, forward and backward, on a row of samples."""
    shape, head_dim = sizes.shape, sizes.shape.hidden // sizes.shape.heads
    lengths = _fill(sizes.lengths, sizes.row)
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
    if error > 0.05:
        raise RuntimeError(f"the ways do not agree: {error}")
    taken = seconds({name: partial(_there_and_back, way) for name, way in ways.items()}, sizes.rounds)
    keys = sum(sum(min(i + 1, window or i + 1) for i in range(n)) for n in lengths)
    done = 12 * shape.hidden * keys
    return [
        figure("G1 varlen attention", [done / t / 1e12 for t in taken["varlen"]], "TFLOP/s"),
        *(
            figure(f"G1 {name} ÷ varlen", [a / b for a, b in zip(taken[name], taken["varlen"], strict=True)], "")
            for name in taken
            if name != "varlen"
        ),
    ]


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


def loss_memory(sizes: Sizes) -> list[Figure]:
    """G3: memory that the loss takes over its inputs, forward and backward, a quarter of the row supervised."""
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
    if abs(losses["chunked"] / losses["full"] - 1) > 1e-3:
        raise RuntimeError(f"the ways do not agree: {losses}")
    taken = seconds({name: partial(_there_and_back, way) for name, way in ways.items()}, sizes.rounds)
    ratio = [a / b for a, b in zip(taken["full"], taken["chunked"], strict=True)]
    figures = [figure("G3 time, full logits ÷ chunked", ratio, "")]
    if sizes.device == "cuda":
        peaks = {name: peak_gib(partial(_there_and_back, way)) for name, way in ways.items()}
        figures.append(Figure("G3 loss memory", peaks["chunked"], "GiB"))
        figures.append(
            Figure("G3 loss memory, chunked ÷ full", peaks["chunked"] / peaks["full"], "", (), "below 0.125")
        )
    return figures


def peak_gib(work: Callable[[], object]) -> float:
    """Memory that `work` takes at its peak, over what is held before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    _wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def steps(sizes: Sizes) -> list[Figure]:
    """G2: one micro-batch forward and backward, and AdamW on what is trained."""
    choose_backend("auto", torch.device(sizes.device), sizes.dtype)
    ceiling = next(f.value for f in ceilings(sizes) if f.unit == "TFLOP/s")
    figures: list[Figure] = []
    for r in sizes.ranks:
        for every in (0, 1):
            figures += _steps(sizes, r, every, ceiling)
    return figures


def _steps(sizes: Sizes, r: int, every: int, ceiling: float) -> list[Figure]:
    name = f"r={r}{', checkpointed' if every else ''}"
    vision, shape = sizes.vision, sizes.shape
    image_tokens = (vision.image_size // vision.patch_size) ** 2
    with torch.device("cpu"):
        made, images = documents(sizes.lengths, shape.vocabulary, image_tokens, vision.image_size)
        batch = pack(made, images, vision.image_size).to(torch.device(sizes.device))
    llava = build_model(shape, PACKED, sizes.dtype, vision)
    prepare_blocks(llava, checkpoint_blocks=every)
    # as DeepSpeed has it: PEFT alone would keep the adapter in float32
    model = with_lora(llava, r).to(sizes.dtype).train()
    flat = partial(_step, ours(model, batch), model)
    taken = seconds({"ours": flat}, sizes.rounds)["ours"]
    tflop = len(made) * (TOWER_TFLOP if sizes is FULL else 0.0)
    supervised = int((batch.labels != IGNORE).sum())
    keys = sum(float(np.minimum(d.position_ids + 1, shape.window or len(d)).sum()) for d in made)
    language = language_flop(model, batch.tokens, keys, supervised, shape) / 1e12
    # a checkpointed block runs forward once more: half of what a frozen layer costs forward and back
    again = every * language / 2
    limit = f"{len(made) * ceiling / (tflop + language + again):.1f}"
    mfu, hfu = ([done / t / ceiling for t in taken] for done in (tflop + language, tflop + language + again))
    figures = [
        figure(f"G2 ours, {name}", [len(made) / t for t in taken], "samples/s", limit=limit),
        figure(f"G2 MFU of the measured ceiling, {name}", mfu, "", "" if every else "at least 0.5"),
        figure(f"G2 HFU of the measured ceiling, {name}", hfu, ""),
    ]
    if sizes.device == "cuda":
        figures.append(Figure(f"G2 activations at the peak, {name}", peak_gib(flat), "GiB"))
    # the same weights behind transformers' own attention, on the same samples padded to the longest
    llava.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    plain = partial(_step, padded(model, made, images, sizes.device, sizes.dtype), model)
    try:
        slow = seconds({"padded": plain}, sizes.rounds)["padded"]
        ratio = statistics.median(slow) / statistics.median(taken)
        figures.append(Figure(f"G2 transformers padded ÷ ours, {name}", ratio, "", (), "at least 1.7"))
    except torch.cuda.OutOfMemoryError:
        print(f"G2 transformers padded, {name}: out of memory")
    return figures


def _step(way: Callable[[], Tensor], model: nn.Module) -> None:
    way().backward()
    # the optimizer is the same for both and small beside the rest: its part is left out
    for p in model.parameters():
        p.grad = None


if __name__ == "__main__":
    main()
