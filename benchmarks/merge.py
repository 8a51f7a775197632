"""C5: an adapter merged into layers of Mistral-7B's shape, ours beside PEFT's load, merge and save: time and memory.

python -m benchmarks.merge --out benchmarks/results/merge.json

All weights are random. Every merge runs in a process of its own; within a round they take turns.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from benchmarks.shards import describe_machine
from shards.files import write_json

HIDDEN, INNER, KEYS, VOCABULARY, LAYERS_7B = 4096, 14336, 1024, 32000, 32
RANKS = (16, 64)
BLOCK = 8 << 20
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
# of a file, as the model's own are cut
SHARD_BYTES = 5 * 10**9

# gives the seconds of its parts
Work = Callable[[], dict[str, float]]
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Run:
    """A process: seconds in all, and without its start (imports); processor time of the latter; its peak of memory."""

    seconds: float
    work_seconds: float
    cpu_seconds: float
    peak_bytes: int
    parts: dict[str, float]


@dataclass(frozen=True)
class Way:
    """One way through all rounds, medians, of memory the most; ratios to ours are of the same round, without starts."""

    name: str
    rank: int
    seconds: float
    work_seconds: float
    cpu_seconds: float
    peak_bytes: int
    over_ours: float
    cpu_over_ours: float
    rounds: list[float]
    parts: dict[str, float]


def main() -> None:
    """Entry point; with --child the process that the parent measures."""
    options = _options()
    if options.child:
        work = CHILDREN[options.child](*map(Path, options.folders))
        begun = time.process_time()
        parts = work()
        print(json.dumps({"parts": parts, "cpu": time.process_time() - begun, "peak": _peak()}))
        return
    layers = LAYERS_7B if options.size == "7b" else options.layers
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = write_base(Path(folder) / "base", layers)
        for rank in RANKS:
            write_adapter(Path(folder) / f"r{rank}", layers, rank)
        print(f"{size / 1e9:.2f} GB in bfloat16, {layers} layers", flush=True)
        if shutil.disk_usage(folder).free < size * (3 if "peft" in options.ways else 1.2):
            raise SystemExit(
                f"{folder}: too little room for what is written of {size / 1e9:.1f} GB; see --folder, --ways"
            )
        load = os.getloadavg()[0]
        ways = [way for rank in options.ranks for way in compare(Path(folder), rank, options.rounds, options.ways)]
    if options.out:
        machine = {**describe_machine(), "torch": torch.__version__, "load_before": round(load, 2)}
        found = {"machine": machine, "layers": layers, "bytes": size, "ways": [asdict(way) for way in ways]}
        write_json(options.out, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--size", choices=["small", "7b"], default="small", help="7b: all 32 layers, 14.5 GB, twice")
    parser.add_argument("--layers", type=int, default=3, help="of the small model; 3 are 1.83 GB")
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is measured")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="of the adapters")
    parser.add_argument("--ways", nargs="+", default=["ours", "peft", "copy"], choices=list(CHILDREN))
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_base(folder: Path, layers: int) -> int:
    """Random weights of a Mistral of `layers` layers, in files as large as those of a published one; their bytes."""
    from vlm.merge.layout import INDEX, SINGLE

    folder.mkdir()
    ends = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes: Shapes = {name: (torch.bfloat16, shape) for name, shape in ends.items()}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": (torch.bfloat16, shape) for name, shape in LINEAR.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (torch.bfloat16, (HIDDEN,))
    shapes["lm_head.weight"] = (torch.bfloat16, (VOCABULARY, HIDDEN))
    files = list(_cut(shapes))
    names = [
        SINGLE if len(files) == 1 else f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    written = sum(
        _write(folder / name, own, 0.02, seed) for seed, (name, own) in enumerate(zip(names, files, strict=True))
    )
    if len(files) > 1:
        places = {tensor: name for name, own in zip(names, files, strict=True) for tensor in own}
        write_json(folder / INDEX, {"metadata": {"total_size": written}, "weight_map": places})
    write_json(folder / "config.json", {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": VOCABULARY, "tie_word_embeddings": False, "dtype": "bfloat16",
    })  # fmt: skip
    return written


def _cut(shapes: Shapes) -> Iterator[Shapes]:
    own: Shapes = {}
    for name, (dtype, shape) in shapes.items():
        if own and sum(torch.Size(s).numel() * d.itemsize for d, s in own.values()) > SHARD_BYTES - 2**27:
            yield own
            own = {}
        own[name] = (dtype, shape)
    yield own


def _write(path: Path, shapes: Shapes, deviation: float, seed: int) -> int:
    from vlm.merge.layout import header_bytes

    generator, written = torch.Generator().manual_seed(seed), 0
    with open(path, "wb") as handle:
        handle.write(header_bytes(shapes, {"format": "pt"}))
        for dtype, shape in shapes.values():
            rows = max(1, BLOCK // torch.Size(shape[1:]).numel())
            for first in range(0, shape[0], rows):
                block = torch.randn(min(rows, shape[0] - first), *shape[1:], generator=generator) * deviation
                written += handle.write(block.to(dtype).view(torch.uint8).numpy().tobytes())
    return written


def write_adapter(folder: Path, layers: int, rank: int) -> None:
    """Random matrices for every linear layer, float32 as PEFT saves them."""
    from vlm.merge.adapter import CONFIG, WEIGHTS

    folder.mkdir()
    shapes: Shapes = {}
    for i in range(layers):
        for name, (outputs, inputs) in LINEAR.items():
            prefix = f"base_model.model.model.layers.{i}.{name}"
            shapes[f"{prefix}.lora_A.weight"] = (torch.float32, (rank, inputs))
            shapes[f"{prefix}.lora_B.weight"] = (torch.float32, (outputs, rank))
    _write(folder / WEIGHTS, shapes, 0.02, rank)
    targets = [name.rpartition(".")[2] for name in LINEAR]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
    }
    write_json(folder / CONFIG, config)


def compare(folder: Path, rank: int, rounds: int, names: Sequence[str]) -> list[Way]:
    """All ways in turn, round after round; what ours and PEFT's write is compared once."""
    found: dict[str, list[Run]] = {name: [] for name in names}
    both = {"ours", "peft"} <= {*names}
    for turn in range(rounds):
        # who begins changes: nobody always finds the files in memory
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            found[name].append(_measured(name, folder / "base", folder / f"r{rank}", folder / name))
            print(f"r={rank} round {turn + 1} {name:5} {found[name][-1]}", flush=True)
            if turn or not both or name == "copy":
                shutil.rmtree(folder / name)
        if not turn and both:
            print(f"r={rank} compared: {compared(folder / 'ours', folder / 'peft')}", flush=True)
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
    return [_way(name, rank, runs, found["ours"]) for name, runs in found.items()]


def _way(name: str, rank: int, runs: list[Run], ours: list[Run]) -> Way:
    ratios = [run.work_seconds / own.work_seconds for run, own in zip(runs, ours, strict=True)]
    cpu_ratios = [run.cpu_seconds / own.cpu_seconds for run, own in zip(runs, ours, strict=True)]
    parts = {part: statistics.median(run.parts[part] for run in runs) for part in runs[0].parts}
    return Way(
        name,
        rank,
        statistics.median(run.seconds for run in runs),
        statistics.median(run.work_seconds for run in runs),
        statistics.median(run.cpu_seconds for run in runs),
        max(run.peak_bytes for run in runs),
        round(statistics.median(ratios), 3),
        round(statistics.median(cpu_ratios), 3),
        [round(ratio, 3) for ratio in ratios],
        parts,
    )


def compared(ours: Path, peft: Path) -> dict[str, float]:
    """Share of numbers that differ, and the largest difference in steps of bfloat16; AssertionError above one."""
    from vlm.merge.layout import Layout

    one, other = Layout.read(ours).tensors, Layout.read(peft).tensors
    assert one.keys() == other.keys()
    unequal, numbers, most = 0, 0, 0.0
    for name, stored in one.items():
        for a, b in zip(stored.blocks(), other[name].blocks(), strict=True):
            off = (a.float() - b.float()).abs_()
            step = torch.maximum(a.abs(), b.abs()).float() * torch.finfo(torch.bfloat16).eps
            unequal, numbers = unequal + int((off > 0).sum()), numbers + a.numel()
            most = max(most, float((off / step.clamp(min=1e-30)).max()))
    assert most <= 1.0, most
    return {"unequal": unequal / numbers, "steps": most}


def _measured(name: str, base: Path, adapter: Path, out: Path) -> Run:
    command = [sys.executable, "-m", "benchmarks.merge", "--child", name, str(base), str(adapter), str(out)]
    # what the one before left to be written is not this one's work
    os.sync()
    begun = time.perf_counter()
    child = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if child.returncode:
        raise RuntimeError(f"{name}: {child.stderr[-2000:]}")
    said = json.loads(child.stdout.splitlines()[-1])
    work = sum(said["parts"].values())
    return Run(round(seconds, 2), round(work, 2), round(said["cpu"], 2), said["peak"], said["parts"])


def _peak() -> int:
    """Of this process alone; ru_maxrss begins with that of the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _ours(base: Path, adapter: Path, out: Path) -> Work:
    from vlm.merge.layout import Layout
    from vlm.merge.output import put, workshop, write_weights
    from vlm.merge.plan import MergePlan

    def work() -> dict[str, float]:
        begun = time.perf_counter()
        plan = MergePlan(base, [adapter], out)
        plan.check_seals()
        layout = Layout.read(base)
        source = plan.source(layout)
        with workshop(out, plan.inputs(layout), plan.read) as folder:
            written = write_weights(layout, source, None, folder, lambda read: None)
            shutil.copy(base / "config.json", folder / "model")
            put(folder, out, written)
        return {"merge": time.perf_counter() - begun}

    return work


def _peft(base: Path, adapter: Path, out: Path) -> Work:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def work() -> dict[str, float]:
        marks = [time.perf_counter()]
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        marks.append(time.perf_counter())
        adapted = PeftModel.from_pretrained(model, adapter)
        marks.append(time.perf_counter())
        merged = adapted.merge_and_unload()
        marks.append(time.perf_counter())
        merged.save_pretrained(out)
        marks.append(time.perf_counter())
        named = ("load", "load adapter", "merge", "save")
        return {name: end - begin for name, begin, end in zip(named, marks[:-1], marks[1:], strict=True)}

    return work


def _copy(base: Path, adapter: Path, out: Path) -> Work:
    """Every byte read, hashed, hashed again as what is written, and written: the four at the same time."""
    return lambda: _copied(base, out)


def _copied(base: Path, out: Path) -> dict[str, float]:
    begun = time.perf_counter()
    out.mkdir()
    with ThreadPoolExecutor(1) as read_hash, ThreadPoolExecutor(1) as write_hash, ThreadPoolExecutor(1) as writer:
        for path in sorted(base.glob("*.safetensors")):
            digests = hashlib.sha256(), hashlib.sha256()
            with open(path, "rb", buffering=0) as source, open(out / path.name, "wb", buffering=0) as target:
                put = partial(_put, target)
                steps: list[tuple[ThreadPoolExecutor, Callable[[Any], Any]]] = [
                    (read_hash, digests[0].update), (write_hash, digests[1].update), (writer, put),
                ]  # fmt: skip
                buffers = [bytearray(BLOCK) for _ in range(3)]
                under_way: list[list[Future[Any]]] = [[] for _ in buffers]
                for turn in range(path.stat().st_size // BLOCK + 1):
                    for done in under_way[turn % 3]:
                        done.result()
                    view = memoryview(buffers[turn % 3])[: source.readinto(buffers[turn % 3])]
                    under_way[turn % 3] = [pool.submit(step, view) for pool, step in steps]
                for done in (each for turn in under_way for each in turn):
                    done.result()
                os.fsync(target.fileno())
            assert digests[0].digest() == digests[1].digest()
    return {"copy": time.perf_counter() - begun}


def _put(target: FileIO, view: memoryview) -> None:
    """Write `view`, and have what was written long before out of the page cache, as the merge does."""
    end = target.tell() + target.write(view)
    for first in (end - BLOCK, end - 17 * BLOCK):
        os.posix_fadvise(target.fileno(), max(0, first), BLOCK, os.POSIX_FADV_DONTNEED)


# what is imported for it is there when it begins
CHILDREN: dict[str, Callable[[Path, Path, Path], Work]] = {"ours": _ours, "peft": _peft, "copy": _copy}


if __name__ == "__main__":
    main()
