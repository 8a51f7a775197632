r"""C1 against the trainers of other packages: LoRA steps of this one beside HF Trainer and TRL's SFTTrainer.

python -m venv /tmp/peers
/tmp/peers/bin/pip install -c constraints.txt torch transformers peft accelerate trl datasets pillow numpy
OMP_WAIT_POLICY=passive \
  python -m benchmarks.peers --peer-python /tmp/peers/bin/python --out benchmarks/results/peers.json

Every way has a process of its own, and they take turns step by step on the same batches of 16 samples: same weights,
token ids and pixels from disk, AdamW, gradient clipping at 1. Ours packs, the peers pad to the longest sample of the
batch. Seconds are CPU time of one thread, from a batch's samples in memory to the updated weights. The gate is the loss
of every step, the weights' drift included. Batches: half padding (C1's shape), then a quarter of the 665k mix's
lengths, drawn at random and grouped by length as transformers' sampler does.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CLIPVisionConfig
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.data import llava_lengths
from benchmarks.peer import Peer, hand_over
from benchmarks.shards import describe_machine
from benchmarks.train import SAMPLES, Figure, Shape, half_padding, language_flop, show
from benchmarks.ways import Engined, Plain, Setting, Taken, Way, seconds, take_turns
from shards.files import write_json

HOW = """make a virtual environment for the peers and name its Python with --peer-python:
  python -m venv /tmp/peers
  /tmp/peers/bin/pip install -c constraints.txt torch transformers peft accelerate trl datasets pillow numpy"""


def figures_of(note: str, setting: Setting, taken: Taken, goals: dict[str, str]) -> list[Figure]:
    """Seconds of our step, the others ÷ ours, and the padding efficiency."""
    mine, limits = seconds(taken["ours"]), {"transformers": f"{padded_work(setting):.2f}"}
    step = [t / len(setting.batches) for t in mine]
    return [
        Figure(f"ours, {note}", statistics.median(step), "s a step", _rounded(step)),
        *(
            _ratio(f"{name} ÷ ours, {note}", seconds(rounds), mine, goals.get(name, ""), limits.get(name, ""))
            for name, rounds in taken.items()
            if name != "ours"
        ),
        Figure(f"padding efficiency, {note}", setting.efficiency),
    ]


def _ratio(name: str, theirs: list[float], mine: list[float], goal: str, limit: str) -> Figure:
    ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
    return Figure(name, statistics.median(ratios), "", _rounded(ratios), goal, limit)


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def padded_work(setting: Setting) -> float:
    """FLOPs of the language model on the padded micro-batches ÷ on the flat rows."""
    model, made = replace(setting, device="meta").model(), setting.samples[0]
    rows = [made[span] for number in range(len(setting.batches)) for span in setting.spans(number)]
    padded = [(len(row), max(len(d) for d in row)) for row in rows]
    tokens = sum(n * longest for n, longest in padded)
    theirs = language_flop(model, tokens, sum(n * longest**2 for n, longest in padded), tokens, setting.shape)
    keys, supervised = sum(len(d) ** 2 / 2 for d in made), sum(d.supervised for d in made)
    return theirs / language_flop(model, sum(len(d) for d in made), keys, supervised, setting.shape)


def mix_batches(count: int, scale: int, shortest: int, grouped: bool) -> tuple[tuple[int, ...], ...]:
    """Lengths of `count` batches of 16 from the simulated 665k mix, divided by `scale`, `shortest` at least.

    `grouped`: as transformers' sampler deals them, every so many of its batches.
    """
    lengths = np.maximum(llava_lengths(50 * SAMPLES)[0] // scale, shortest).tolist()
    order = range(len(lengths))
    if grouped:
        order = get_length_grouped_indices(lengths, SAMPLES, 50, torch.Generator().manual_seed(0))
    batches = [tuple(lengths[i] for i in order[at : at + SAMPLES]) for at in range(0, len(lengths), SAMPLES)]
    every = len(batches) // count
    return tuple(batches[every // 2 :: every][:count])


def compare(setting: Setting, python: str, trainers: Sequence[str], note: str, goals: dict[str, str]) -> list[Figure]:
    """Ours through DeepSpeed, ours in a plain loop, and the peers."""
    with tempfile.TemporaryDirectory() as folder:
        hand_over(setting, Path(folder))
        makers: dict[str, Callable[[], Way]] = {
            "ours": partial(Engined, setting),
            "plain loop": partial(Plain, setting),
        }
        makers |= {t: partial(Peer, setting, Path(folder), python, t, setting.rounds) for t in trainers}
        return figures_of(note, setting, take_turns(setting, makers), goals)


SMALL_CLIP = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


def settings(rounds: int, smoke: bool) -> dict[str, Setting]:
    """By name, what is compared."""
    clip = partial(CLIPVisionConfig, **SMALL_CLIP, patch_size=8)
    first = Setting(Shape(), clip(image_size=56), (tuple(half_padding(SAMPLES, 400)),), rounds=rounds)
    # Mistral-7B's head holds 1.9 % of what its layers do: this one's vocabulary is as small beside its layers
    small = replace(first, shape=Shape(vocabulary=320))
    # a quarter of everything: 144 image tokens for 576, at most 512 tokens for 2048
    mix = replace(small, vision=clip(image_size=96))
    made = {
        "half padding": first,
        "half padding, head of 2 %": small,
        "mix, random": replace(mix, batches=mix_batches(2, 4, 156, grouped=False)),
        "mix, grouped": replace(mix, batches=mix_batches(2, 4, 156, grouped=True)),
    }
    tiny = Shape(hidden=96, intermediate=192, layers=2, vocabulary=320)
    return {name: replace(s, shape=tiny) for name, s in made.items()} if smoke else made


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--peer-python", help="Python of a virtual environment that has transformers, peft and trl")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is measured")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.peer_python:
        raise SystemExit(HOW)
    torch.set_num_threads(1)
    machine = describe_machine() | {"torch": torch.__version__, "transformers": transformers.__version__}
    machine["peers"] = peer_versions(options.peer_python)
    figures: list[Figure] = []
    goals = {"half padding": {"transformers": "at least 2.5"}}
    for name, setting in settings(options.rounds, options.smoke).items():
        figures += compare(setting, options.peer_python, ("transformers", "trl"), name, goals.get(name, {}))
        show(figures, f"{machine['cpu']}, one thread, {machine['peers']}")
        machine["load_average_after"] = round(os.getloadavg()[0], 2)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, {"machine": machine, "figures": [asdict(f) for f in figures]})


def peer_versions(python: str) -> str:
    """The peers' packages in the environment of `python`; SystemExit says how to make one."""
    names = ("torch", "transformers", "trl", "peft", "accelerate")
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {names!r}))"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"{python}: {error.strerror}\n{HOW}") from None
    if found.returncode:
        raise SystemExit(f"{python}: {found.stderr.strip().splitlines()[-1]}\n{HOW}")
    return found.stdout.strip()


if __name__ == "__main__":
    main()
