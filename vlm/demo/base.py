"""The English base that stands in for "LLaVA 1.5, pretrained": made by three trainings, kept in `vlm/demo/base`."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from shards.files import sealed_output, verify_manifest
from vlm import checkpoint
from vlm.config import Recipe
from vlm.data.images import Pixels
from vlm.demo.contrastive import Settings, train_tower
from vlm.events import Events
from vlm.model.export import apply_checkpoint, write_model
from vlm.model.load import load_model, load_tokenizer

KEPT = Path(__file__).parent / "base"
# what must be equal for kept weights to fit an assembled model
SHAPE_FILES = ("config.json", "tokenizer.json", "assembly.json")


def tower_step(assembled: Path, captions: Path, out: Path, run: Path, settings: Settings) -> None:
    """First step: `out` is `assembled` with its vision tower trained against captions."""
    run.mkdir(parents=True, exist_ok=True)
    events = Events(run)
    model = load_model(assembled, "float32", packed=False)

    def log(epoch: int, loss: float) -> None:
        print(f"tower: epoch {epoch + 1}/{settings.epochs} loss {loss:.4f}", flush=True)
        events.write("step", step=epoch + 1, epoch=epoch + 1, loss=loss)

    train_tower(model.model.vision_tower, load_tokenizer(assembled), captions, Pixels.of(assembled), settings, log)
    write_model(model, assembled, out, "# The assembled model with a tower trained against captions\n")


def adopt(origin: Path, recipe: Recipe, out: Path) -> None:
    """`out` is `origin` with the weights that a projector or full training of `recipe` ended with."""
    folder = checkpoint.newest(Path(recipe.run))
    assert folder is not None, f"{recipe.run} has no checkpoint"
    write_model(apply_checkpoint(origin, folder), origin, out, f"# {recipe.name}: {folder.name}\n")


def install_kept(assembled: Path, out: Path) -> None:
    """Copy the kept base to `out` after checking that it was made from the very model that is assembled here."""
    problems = verify_manifest(KEPT)
    if problems:
        raise BadInput(f"{KEPT}: damaged: {problems[0]}; make it anew with `vlm demo --train-base`")
    for name in SHAPE_FILES:
        if _comparable(KEPT / name) != _comparable(assembled / name):
            raise BadInput(
                f"{KEPT / name}: differs from {assembled / name}; make the base anew with `vlm demo --train-base`"
            )
    with sealed_output(out):
        for path in sorted(KEPT.iterdir()):
            if path.name != "MANIFEST.json":
                shutil.copyfile(path, out / path.name)


def _comparable(path: Path) -> object:
    content = json.loads(path.read_text("utf-8"))
    # weights are compared by the manifest; a kept base is stored in 16 bits
    return {
        k: v
        for k, v in content.items()
        if k
        not in ("dtype", "vision_digest", "language_digest", "text_config", "vision_config", "transformers_version")
    }


def keep(trained: Path, out: Path, card: str) -> None:
    """Store a trained base in bfloat16, rounded once; `card` holds seed, log and scores."""
    model: LlavaForConditionalGeneration = load_model(trained, "float32", packed=False).to(torch.bfloat16)
    write_model(model, trained, out, card)


def sparkline(values: list[float], width: int = 60) -> str:
    """A loss curve in one line of text, for the card."""
    marks = "▁▂▃▄▅▆▇█"
    step = max(1, math.ceil(len(values) / width))
    means = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, high = min(means), max(means)
    scale = (len(marks) - 1) / (high - low) if high > low else 0
    return "".join(marks[round((m - low) * scale)] for m in means)


Progress = Callable[[str], None]
