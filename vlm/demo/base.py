"""The English base that stands in for "LLaVA 1.5, pretrained": made by four trainings, kept in `english_base`."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from shards.errors import BadInput
from shards.files import read_json, sealed_output, verify_manifest
from vlm.data.images import Pixels
from vlm.demo.contrastive import Settings, train_tower
from vlm.events import Events, read_events
from vlm.export import write_model
from vlm.model.load import load_model, load_tokenizer

KEPT = Path(__file__).parent / "english_base"
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


def install_kept(assembled: Path, out: Path) -> None:
    """Copy the kept base to `out` after checking that it was made from the very model that is assembled here."""
    problems = verify_manifest(KEPT)
    if problems:
        raise BadInput(f"{KEPT}: damaged: {problems[0]}; make it anew with `vlm demo --train-base`")
    for name in SHAPE_FILES:
        if _comparable(read_json(KEPT / name)) != _comparable(read_json(assembled / name)):
            raise BadInput(
                f"{KEPT / name}: differs from {assembled / name}; make the base anew with `vlm demo --train-base`"
            )
    with sealed_output(out):
        for path in sorted(KEPT.iterdir()):
            if path.name != "MANIFEST.json":
                shutil.copyfile(path, out / path.name)


def _comparable(content: Any) -> Any:
    """JSON without what may differ between equal models: precision, library version.

    Digests of discarded first weights.
    """
    if not isinstance(content, dict):
        return content
    ignored = ("dtype", "use_cache", "transformers_version", "vision_digest", "language_digest")
    return {key: _comparable(value) for key, value in content.items() if key not in ignored}


def keep(run: Path, out: Path) -> None:
    """Store the base that `vlm demo --train-base` left in `run`: rounded once to bfloat16.

    Its card telling how it was made.
    """
    trained = run / "models" / "base"
    problems = verify_manifest(trained)
    if problems:
        raise BadInput(f"{trained}: {problems[0]}; make it with `vlm demo --train-base`")
    model = load_model(trained, "float32", packed=False).to(torch.bfloat16)
    write_model(model, trained, out, _card(run))


def _card(run: Path) -> str:
    score = read_json(run / "eval" / "en-base" / "result.json")
    made = read_json(run / "base" / "balanced" / "run.json")
    lines = [
        "# The English base of the demo",
        "",
        "A tiny LLaVA trained on easy-VQA alone; it stands in for a pretrained one. Made by",
        "`vlm demo --train-base` and `vlm demo-keep`, weights rounded to bfloat16 once.",
        "Licence: Apache-2.0. Data: easy-VQA (MIT).",
        "",
        f"Before rounding: {score['score']:.4f} on {score['n']} English test questions ({score['scorer']}).",
        "",
        *(f"- {kind}: {value['score']:.4f} of {value['n']}" for kind, value in score["by_type"].items()),
        "",
        f"Seed {_seed(run)}; versions {made['versions']}; device {made['device']}.",
        "",
        "| step | updates or epochs | first loss | last loss | minutes | loss |",
        "|---|---|---|---|---|---|",
    ]
    for step in ("tower", "projector", "questions", "balanced"):
        events = [e for e in read_events(run / "base" / step) if e["event"] == "step"]
        losses = list({e["step"]: e["loss"] for e in events}.values())
        minutes = (events[-1]["time"] - events[0]["time"]) / 60
        row = [step, len(losses), f"{losses[0]:.3f}", f"{losses[-1]:.3f}", f"{minutes:.0f}", f"`{sparkline(losses)}`"]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines) + "\n"


def _seed(run: Path) -> int:
    """The seed of the base's last training."""
    return int(yaml.safe_load((run / "base" / "balanced" / "recipe.yaml").read_text("utf-8"))["seed"])


def sparkline(values: list[float], width: int = 40) -> str:
    """A curve in one line of text: means of `width` stretches."""
    marks = "▁▂▃▄▅▆▇█"
    step = max(1, math.ceil(len(values) / width))
    means = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, high = min(means), max(means)
    scale = (len(marks) - 1) / (high - low) if high > low else 0
    return "".join(marks[round((m - low) * scale)] for m in means)
