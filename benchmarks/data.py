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
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from benchmarks.shards import describe_machine
from shards.dataset import ShardDataset
from shards.files import write_json
from shards.index import IndexEntry, ShardIndex
from shards.info import DatasetInfo, FileInfo, ShardInfo, file_info
from shards.sample import ImagePart, Message, Sample, Text
from shards.tar import ShardWriter
from vlm.data import decode
from vlm.data.cost import Cost
from vlm.data.deal import balance, deal
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.loader import DataConfig, Source
from vlm.data.plan import Plan
from vlm.data.template import TEMPLATES
from vlm.demo.models import write_language, write_vision
from vlm.model.assemble import assemble
from vlm.model.load import load_tokenizer

SAMPLES = 665_000
PHOTOS, ROUNDS = 128, 5
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
    figures = [*_memory(), *_balance(options.steps), *_images(), *_loading()]
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
    for ranks, batch, limit in [
        *((ranks, batch, 16384) for ranks in (2, 8, 16, 64) for batch in (128, 256, 512)),
        (8, 128, 8192),
        (64, 1024, 16384),
    ]:
        plan = Plan((SAMPLES,), batch, 1, 0)
        ours, theirs, late, least, seconds = [], [], [], [], 0.0
        for step in range(min(steps, plan.steps)):
            begun = time.perf_counter()
            own = [i for _, i in plan.batch(step)]
            dealt = deal(tokens[own].tolist(), ranks, limit, costs[own].tolist())
            seconds += time.perf_counter() - begun
            ours.append(balance(costs[own].tolist(), dealt))
            # were ranks to wait for each other at the end of a step alone
            late.append(_idle([costs[own][[i for row in rank for i in row]].sum() for rank in dealt]))
            theirs.append(_idle(costs[own].reshape(ranks, -1).sum(axis=1)))
            least.append(1 - costs[own].sum() / ranks / cheapest_rank(costs[own], ranks))
        name = f"C3 idle, {ranks} ranks, {batch} a step, rows of {limit}"
        reachable = 100 * statistics.mean(least)
        goal = f"<= 2; no dealing below {reachable:.3g}" if reachable > 0.01 else "<= 2"
        figures += [
            Figure(name, 100 * statistics.mean(ours), "%", goal),
            Figure(f"{name}, worst step", 100 * max(ours), "%", f"no dealing below {100 * max(least):.3g}"),
            Figure(f"{name}, waiting at the step's end alone", 100 * statistics.mean(late), "%"),
            Figure(f"{name}, dealt in order", 100 * statistics.mean(theirs), "%"),
            Figure(f"{name}, planned in", 1000 * seconds / len(ours), "ms/step"),
        ]
    return figures


def _idle(loads: Sequence[float] | np.ndarray) -> float:
    return float(1 - np.mean(loads) / np.max(loads))


def cheapest_rank(costs: np.ndarray, ranks: int) -> float:
    """What the dearest rank costs at least, however samples are dealt.

    No less than the mean, than the dearest sample, nor than the least cost to which as many ranks suffice by the bound
    L2 of Martello and Toth, "Lower bounds and reduction procedures for the bin packing problem" (1990).
    """
    least = max(float(costs.sum()) / ranks, float(costs.max()))
    if _ranks_needed(costs, least) <= ranks:
        return least
    most = 2 * least
    while most - least > 1e-4 * most:
        middle = (least + most) / 2
        least, most = (least, middle) if _ranks_needed(costs, middle) <= ranks else (middle, most)
    return least


def _ranks_needed(costs: np.ndarray, most: float) -> int:
    needed = 0
    for small in np.unique(np.append(costs[costs <= most / 2], 0.0)):
        alone, large = costs > most - small, (costs <= most - small) & (costs > most / 2)
        rest = costs[(costs <= most / 2) & (costs >= small)].sum() - (large.sum() * most - costs[large].sum())
        needed = max(needed, int(alone.sum() + large.sum() + max(0, np.ceil(rest / most - 1e-9))))
    return needed


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


def _loading() -> list[Figure]:
    """Images through `Source.load`: read from a tar by offset, tokenised, decoded, padded, resized."""
    with TemporaryDirectory() as name:
        folder, model, photos = Path(name), Path(name) / "model", _photos(32)
        texts = [f"What is shown in picture {i}?" for i in range(PHOTOS)]
        write_vision(folder / "vision", 0)
        write_language(folder / "language", texts, 0)
        assemble(folder / "vision", folder / "language", model, template="mistral-instruct")
        with ShardWriter(folder, "photos-000000") as writer:
            for i, text in enumerate(texts):
                turns = (Message("user", (ImagePart(), Text(text))), Message("assistant", (Text(text * 10),)))
                writer.add(Sample(f"p-{i:04d}", str(i), "benchmark", "en", turns, (), photos[i % len(photos)], "jpg"))
            shard = writer.finish()
        info = DatasetInfo("photos", "en", "train", "benchmark", "CC0", PHOTOS, 0, PHOTOS, (shard,))
        write_json(folder / "dataset.json", info.to_json())
        tokeniser = Tokeniser(load_tokenizer(model), TEMPLATES["mistral-instruct"], 576)
        config = DataConfig(train=str(folder), cache=str(folder / "cache"))
        source = Source(config, tokeniser, Pixels(336, _MEAN, _STD), 0)
        found = []
        for _ in range(ROUNDS):
            begun = time.thread_time()
            for i in range(PHOTOS):
                source.load(0, i)
            found.append(PHOTOS / (time.thread_time() - begun))
    return [Figure("C4 loaded, decoded and tokenised, samples a core", statistics.median(found), "1/s", ">= 62.5")]


def _memory() -> list[Figure]:
    with TemporaryDirectory() as name, get_context("fork").Pool(1) as pool:
        _write_index(Path(name))
        entries, seconds, lengths = pool.apply(_kept, (Path(name),))
    return [
        Figure(f"memory of the index of {SAMPLES:,} samples, a process", entries, "MiB", "<= 60"),
        Figure(f"index of {SAMPLES:,} samples opened in", seconds, "s"),
        Figure(f"memory of the lengths of {SAMPLES:,} samples, a process", lengths, "MiB"),
    ]


def _write_index(folder: Path) -> None:
    """A set of LLaVA's size whose tars are holes."""
    shards, size = [], 500
    for start in range(0, SAMPLES, size):
        tar = folder / f"llava-{start // size:06d}.tar"
        entries = tuple(
            IndexEntry(
                f"llava-train-{start + i:06d}",
                {"jpg": (512 + i * 90_000, 80_000 + i), "json": (512 + i * 90_000 + 82_000, 2000)},
                (640, 480),
                3,
            )
            for i in range(size)
        )
        tar.touch()
        os.truncate(tar, size * 90_000 + 512)
        info = FileInfo(tar.name, tar.stat().st_size, "0" * 64)
        index = folder / f"{tar.stem}.index.json"
        write_json(index, ShardIndex(info.file, info.bytes, info.sha256, entries).to_json())
        shards.append(ShardInfo(info, size, file_info(index)))
    dataset = DatasetInfo("llava", "en", "train", "benchmark", "CC0", SAMPLES, 3 * SAMPLES, SAMPLES, tuple(shards))
    write_json(folder / "dataset.json", dataset.to_json())


def _kept(folder: Path) -> tuple[float, float, float]:
    before, begun = _resident(), time.process_time()
    dataset = ShardDataset.open(folder)
    seconds, between = time.process_time() - begun, _resident()
    lengths = np.ones((SAMPLES, 3), dtype=np.int32)
    after = _resident()
    assert len(dataset) == len(lengths)
    return between - before, seconds, after - between


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
