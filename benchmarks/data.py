"""The data path beside its limits: how even ranks are, how fast images become pixels, what lengths cost.

python -m benchmarks.data --out benchmarks/results/data.json
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from benchmarks.shards import describe_machine
from shards.files import write_json
from shards.index import IndexEntry
from vlm.data import decode
from vlm.data.cost import Cost
from vlm.data.images import Pixels
from vlm.data.plan import Plan, balance, deal

SAMPLES = 665_000
ROUNDS = 5
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Mistral-7B with CLIP-L/336: 0.38 TFLOP an image, 12·L·d a key, over 4 · 6.98e9 a token
_COST = Cost(image=13.6, attention=12 * 32 * 4096 / (4 * 6.98e9), window=4096)


@dataclass(frozen=True)
class Figure:
    """A measured figure, the median of its rounds, and its limit or goal."""

    name: str
    value: float
    unit: str
    goal: str = ""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps of each plan that are dealt")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    figures = [*_balance(options.steps), *_images(), *_memory()]
    for figure in figures:
        print(f"{figure.name:70} {figure.value:10.4g} {figure.unit:12} {figure.goal}", flush=True)
    if options.out:
        turbo = "simplejpeg" if decode._TURBO else "Pillow"
        machine = {**describe_machine(), "torch": torch.__version__, "jpeg": turbo}
        write_json(options.out, {"machine": machine, "figures": [asdict(figure) for figure in figures]})


def llava_lengths(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and images of `samples` simulated samples: 870 tokens in the mean, 6 % of them text alone, cut at 2048."""
    rng = np.random.default_rng(seed)
    images = (rng.random(samples) < 0.94).astype(np.int64)
    text = np.where(images == 1, rng.lognormal(5.3, 0.75, samples), rng.lognormal(6.5, 0.8, samples)).astype(int) + 30
    return np.minimum(576 * images + text, 2048), images


def _balance(steps: int) -> list[Figure]:
    tokens, images = llava_lengths(SAMPLES)
    costs = _COST.of(tokens, images)
    figures = [Figure("C3 mean tokens", float(tokens.mean()), "tokens", "about 870")]
    for ranks, batch, limit in ((8, 128, 16384), (8, 128, 8192), (64, 512, 16384), (64, 1024, 16384), (64, 128, 16384)):
        plan = Plan((SAMPLES,), batch, 1, 0)
        ours, theirs, least, seconds = [], [], [], 0.0
        for step in range(min(steps, plan.steps)):
            begun = time.perf_counter()
            own = [i for _, i in plan.batch(step)]
            dealt = deal(tokens[own].tolist(), ranks, limit, costs[own].tolist())
            seconds += time.perf_counter() - begun
            ours.append(balance(costs[own].tolist(), dealt))
            loads = costs[own].reshape(ranks, -1).sum(axis=1)
            theirs.append(float(1 - loads.mean() / loads.max()))
            # no dealing is more even than the dearest sample, or two of the cheapest together, allow
            least.append(_least_idle(costs[own], ranks))
        name = f"C3 idle, {ranks} ranks, {batch} a step, rows of {limit}"
        reachable = statistics.mean(least)
        figures += [
            Figure(name, 100 * statistics.mean(ours), "%", f"<= 2, limit {100 * reachable:.2g}"),
            Figure(f"{name}, worst step", 100 * max(ours), "%"),
            Figure(f"{name}, dealt in order", 100 * statistics.mean(theirs), "%"),
            Figure(f"{name}, planned in", 1000 * seconds / len(ours), "ms/step"),
        ]
    return figures


def _least_idle(costs: np.ndarray, ranks: int) -> float:
    ordered = np.sort(costs)[::-1]
    # of the first k·ranks + 1 samples some rank has k + 1, at least the cheapest of them
    fullest = [ordered[: k * ranks + 1][-(k + 1) :].sum() for k in range((len(costs) - 1) // ranks + 1)]
    return float(max(0.0, 1 - costs.sum() / ranks / max(fullest)))


def _photos(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for width, height in [(640, 480), (480, 640), (500, 375), (640, 427)] * (count // 4):
        noise = [rng.integers(0, 256, (height // n, width // n, 3), dtype=np.uint8) for n in (16, 2)]
        coarse, fine = (Image.fromarray(n).resize((width, height), Image.Resampling.BICUBIC) for n in noise)
        buffer = io.BytesIO()
        Image.blend(coarse, fine, 0.15).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def _images() -> list[Figure]:
    photos, pixels = _photos(32), Pixels(336, _MEAN, _STD)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})

    def chain(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in _MEAN))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        values: np.ndarray = processor(square, return_tensors="np").pixel_values[0]
        return values

    def pillow(data: bytes) -> np.ndarray:
        turbo, decode._TURBO = decode._TURBO, None
        try:
            return pixels.decode(data)
        finally:
            decode._TURBO = turbo

    for data in photos:
        ours = pixels.decode(data)
        assert np.array_equal(ours, pillow(data))
        normal = pixels.normalise(torch.from_numpy(ours.copy())[None], torch.float32)[0].numpy()
        np.testing.assert_allclose(normal, chain(data), atol=2e-6)
    speeds = _interleaved([chain, pillow, pixels.decode], photos)
    threads, processes = _pooled(pixels, photos)
    return [
        Figure("C4 the PIL chain of LLaVA, images a core", speeds[0], "1/s"),
        Figure("C4 ours without simplejpeg", speeds[1], "1/s", f"{speeds[1] / speeds[0]:.2f} of the chain"),
        Figure("C4 ours", speeds[2], "1/s", f"{speeds[2] / speeds[0]:.2f} of the chain, >= 1.5, pixels equal"),
        Figure("C4 ours in 2 threads", threads, "1/s"),
        Figure("C4 ours in 2 processes", processes, "1/s"),
    ]


def _interleaved(ways: Sequence[Callable[[bytes], np.ndarray]], photos: list[bytes]) -> list[float]:
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for way, found in zip(ways, seconds, strict=True):
            begun = time.thread_time()
            for data in photos:
                way(data)
            found.append(time.thread_time() - begun)
    return [len(photos) / statistics.median(found) for found in seconds]


def _pooled(pixels: Pixels, photos: list[bytes]) -> tuple[float, float]:
    work = photos * 4
    with ThreadPoolExecutor(2) as threads, get_context("fork").Pool(2) as processes:
        speeds: list[list[float]] = [[], []]
        runs: list[Callable[..., Iterable[np.ndarray]]] = [threads.map, processes.imap]
        for _ in range(ROUNDS):
            for found, run in zip(speeds, runs, strict=True):
                begun = time.perf_counter()
                assert len(list(run(pixels.decode, work))) == len(work)
                found.append(len(work) / (time.perf_counter() - begun))
    return statistics.median(speeds[0]), statistics.median(speeds[1])


def _memory() -> list[Figure]:
    with get_context("fork").Pool(1) as pool:
        entries, lengths = pool.apply(_kept)
    return [
        Figure(f"memory of the index of {SAMPLES:,} samples, a process", entries, "MiB"),
        Figure(f"memory of the lengths of {SAMPLES:,} samples, a process", lengths, "MiB"),
    ]


def _kept() -> tuple[float, float]:
    before = _resident()
    entries = [
        IndexEntry(
            f"llava-train-{i:06d}", {"json": (i * 90000, 2000), "jpg": (i * 90000 + 3000, 80000 + i)}, (640, 480), 0
        )
        for i in range(SAMPLES)
    ]
    between = _resident()
    lengths = np.ones((SAMPLES, 3), dtype=np.int32)
    after = _resident()
    assert len(entries) == len(lengths)
    return between - before, after - between


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
