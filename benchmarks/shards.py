"""How fast shards are built and verified, beside what the machine itself can do with the same bytes.

python -m benchmarks.shards --out benchmarks/results/shards.json
"""

import argparse
import hashlib
import io
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import Image
from rich.console import Console
from rich.table import Table

from shards.build import BuildSettings, build
from shards.files import write_json
from shards.info import DatasetInfo
from shards.readers import ReaderOptions, find_reader
from shards.verify import verify

SMALL_SAMPLES = 100_000
WORKERS = 2

_PICTURES = 32
_SMALL_PICTURES = 100


@dataclass(frozen=True)
class Figure:
    """A measured figure, the median of its rounds, and the goal it should reach or stay below."""

    name: str
    value: float
    unit: str
    rounds: tuple[float, ...] = ()
    goal: str = ""


def main() -> None:
    """Entry point; with --memory only what the parent measures the memory of."""
    options = _options()
    if options.memory:
        _build(options.memory / "set.jsonl", options.memory / "images", options.memory / "shards", WORKERS)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = [*_speed(Path(folder), options.samples, options.rounds), _memory(Path(folder))]
    machine = describe_machine()
    _show(figures, machine)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine, "samples": options.samples, "figures": [asdict(figure) for figure in figures]}
        write_json(options.out, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--samples", type=int, default=6000, help="images of 130 KB to build from")
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is measured")
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _speed(folder: Path, samples: int, rounds: int) -> list[Figure]:
    """Build and verify; every round measures each thing once, so that a busy machine slows them alike."""
    images = folder / "images"
    _write_set(folder, samples, _pictures(_PICTURES, 640, 480, 86))
    files = sorted(images.iterdir())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    taken: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        taken.setdefault(name, []).append(time.perf_counter() - start)

    out = folder / "shards"
    for _ in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        measure("copy", lambda: _copy(files, folder / "copy"))
        measure("hash", lambda: _hash(files))
        measure("build", lambda: _build(folder / "set.jsonl", images, out, WORKERS))
        measure("sha256sum", lambda: _sha256sum(out))
        measure("verify", lambda: _verify(out))
        measure("verify one worker", lambda: _verify(out, 1))
    stored = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    return [
        _figure("build", [samples / t for t in taken["build"]], "samples/s", "at least 2,000"),
        _figure("copy to one file", [samples / t for t in taken["copy"]], "samples/s"),
        _figure("hashlib's SHA-256", [megabytes / t for t in taken["hash"]], "MB/s"),
        _figure("verify", [stored / t for t in taken["verify"]], "MB/s"),
        _figure("verify, one worker", [stored / t for t in taken["verify one worker"]], "MB/s"),
        _figure("sha256sum", [stored / t for t in taken["sha256sum"]], "MB/s"),
        _figure(
            "verify ÷ sha256sum",
            [a / b for a, b in zip(taken["sha256sum"], taken["verify"], strict=True)],
            "",
            "at least 0.6",
        ),
    ]


def _memory(folder: Path) -> Figure:
    """Peak memory of a process that builds many small samples."""
    small = folder / "small"
    small.mkdir()
    _write_set(small, SMALL_SAMPLES, _pictures(_SMALL_PICTURES, 32, 32, 75), shared=True)
    command = [sys.executable, "-m", "benchmarks.shards", "--memory", str(small)]
    child = subprocess.Popen(command)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"the build for the memory figure ended with {os.waitstatus_to_exitcode(status)}")
    return Figure(f"peak memory of building {SMALL_SAMPLES:,}", used.ru_maxrss / 1024, "MiB", goal="below 500")


def _figure(name: str, rounds: list[float], unit: str, goal: str = "") -> Figure:
    return Figure(name, statistics.median(rounds), unit, tuple(round(value, 3) for value in rounds), goal)


def _pictures(count: int, width: int, height: int, quality: int) -> list[bytes]:
    """JPEGs of smooth noise, about as hard to compress as a photograph: 130 KB at 640x480 and quality 86."""
    rng = random.Random(0)
    pictures = []
    for _ in range(count):
        small = Image.frombytes("RGB", (width // 4, height // 4), rng.randbytes(width // 4 * (height // 4) * 3))
        buffer = io.BytesIO()
        small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
        pictures.append(buffer.getvalue())
    return pictures


def _write_set(folder: Path, samples: int, pictures: list[bytes], shared: bool = False) -> None:
    """`set.jsonl` in LLaVA's form, and `images`: one a sample, or `shared` by many."""
    images = folder / "images"
    images.mkdir()
    for number in range(len(pictures) if shared else samples):
        picture, comment = pictures[number % len(pictures)], f"{number:012d}".encode()
        # a comment tells pictures of the same pixels apart
        marked = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + picture[2:]
        (images / f"{number:012d}.jpg").write_bytes(marked)
    with open(folder / "set.jsonl", "w", encoding="utf-8") as handle:
        for number in range(samples):
            name = f"{number % len(pictures) if shared else number:012d}.jpg"
            handle.write(json.dumps(_row(number, name)) + "\n")


def _row(number: int, image: str) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": f"<image>\nWhat does picture {number} show?"},
        {"from": "gpt", "value": "Smooth noise in many colours. " * 5},
        {"from": "human", "value": "Is there anything else to be seen in it?"},
        {"from": "gpt", "value": "No, there is nothing but noise. " * 5},
    ]
    return {"id": str(number), "image": image, "conversations": turns}


def _build(source: Path, images: Path, out: Path, workers: int) -> DatasetInfo:
    options = ReaderOptions(input=source, images=images)
    return build(find_reader("llava"), options, out, settings=BuildSettings(workers=workers))


def _verify(folder: Path, workers: int | None = None) -> None:
    problems = verify(folder, workers=workers)
    if problems:
        raise RuntimeError(f"{folder} is damaged: {problems[0]}")


def _sha256sum(folder: Path) -> None:
    subprocess.run(["sha256sum", *sorted(folder.iterdir())], check=True, stdout=subprocess.DEVNULL)


def _copy(files: list[Path], to: Path) -> None:
    """What any build has to do at least: every image read, and written to the disk."""
    with open(to, "wb") as target:
        for path in files:
            target.write(path.read_bytes())
        target.flush()
        os.fsync(target.fileno())
    to.unlink()


def _hash(files: list[Path]) -> None:
    for path in files:
        hashlib.sha256(path.read_bytes()).digest()


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _show(figures: list[Figure], machine: dict[str, Any]) -> None:
    table = Table(title=f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}")
    for column in ("", "median", "rounds", "goal"):
        table.add_column(column)
    for figure in figures:
        spread = f"{min(figure.rounds):,.2f} to {max(figure.rounds):,.2f}" if figure.rounds else ""
        table.add_row(figure.name, f"{figure.value:,.2f} {figure.unit}".strip(), spread, figure.goal)
    Console().print(table)


if __name__ == "__main__":
    main()
