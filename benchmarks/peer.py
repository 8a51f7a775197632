"""Another package's trainer as a way to take a step: it runs in a process, and an environment, of its own."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.train import PIXELS
from benchmarks.ways import OPTIM, WARM_UP, Setting, Step, free
from shards.files import write_json
from vlm.data.documents import IGNORE

DRIVER = Path(__file__).with_name("peer_driver.py")


class PeerFailed(Exception):
    """A peer could not be run, and why."""


class Peer:
    """A peer's trainer in a process of its own; `folder` was filled by `hand_over`."""

    def __init__(self, setting: Setting, folder: Path, python: str, trainer: str, rounds: int) -> None:
        self.setting, self.numbers = setting, list(range(len(setting.batches))) * (rounds + WARM_UP)
        place = Path(tempfile.mkdtemp(dir=folder))
        for name in ("model", "adapter", "samples.safetensors"):
            (place / name).symlink_to(folder / name)
        order = [i for n in self.numbers for span in setting.spans(n) for i in range(span.start, span.stop)]
        write_json(
            place / "task.json",
            {
                "trainer": trainer,
                "device": setting.device,
                "dtype": str(setting.dtype).removeprefix("torch."),
                "micro": setting.micro,
                "accumulate": len(setting.spans(0)),
                "steps": len(self.numbers),
                "lr": OPTIM.lr,
                "checkpoint": bool(setting.checkpoint),
                "pad": 0,
                "order": order,
            },
        )
        with (place / "log").open("w") as log:
            command = [python, str(DRIVER), str(place)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=_environment(), text=True
            )
        self.name, self.log, self.done = trainer, place / "log", 0
        self.versions: dict[str, str] = self._heard()["versions"]

    def step(self, number: int) -> Step:
        """Let it do its next step, which must be batch `number`."""
        assert self.numbers[self.done] == number and self.process.stdin
        self.done += 1
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        told = self._heard()
        return Step(told["wall" if self.setting.device == "cuda" else "cpu"], told["loss"], told["peak"])

    def close(self) -> None:
        """End its process."""
        self.process.communicate()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        told: dict[str, Any] = json.loads(line) if line else {"failed": "ended"}
        if "failed" in told:
            self.close()
            last = self.log.read_text().strip().splitlines()[-1:]
            raise PeerFailed(f"{self.name}: {told['failed'] if line else ''.join(last)}")
        return told


def _environment() -> dict[str, str]:
    # a peer is no rank of ours
    return {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "DS_ACCELERATOR")}


def hand_over(setting: Setting, folder: Path) -> None:
    """Write weights and samples for the peers; weights that are there stay."""
    if not (folder / "model").exists():
        model: Any = setting.model()
        model.save_pretrained(folder / "adapter")
        model.unload().save_pretrained(folder / "model")
        del model
        free()
    made, images = setting.samples
    # transformers shifts labels itself: theirs stand where the token is
    labels = [np.concatenate([[IGNORE], d.labels[:-1]]) for d in made]
    arrays = {
        "ids": np.concatenate([d.input_ids for d in made]),
        "labels": np.concatenate(labels),
        "bounds": np.cumsum([0, *(len(d) for d in made)]),
        "pixels": np.stack(images),
        "mean": np.array(PIXELS.mean, dtype=np.float32),
        "std": np.array(PIXELS.std, dtype=np.float32),
    }
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / "samples.safetensors")
