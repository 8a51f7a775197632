"""What an adapter's place in a run tells: its checkpoint, its recipe, the base it was trained on."""

from pathlib import Path
from typing import Any

import yaml

from shards.errors import BadInput
from shards.files import read_json

_MOST_RECIPE = 2**20


def find_adapter(given: Path) -> Path:
    """The adapter's folder that a user means by it, by its checkpoint or by its run, whose newest whole one it is."""
    if (given / "adapter").is_dir():
        return given / "adapter"
    if not (given / "checkpoints").is_dir():
        return given
    from vlm.checkpoint import newest

    folder = newest(given)
    if folder is None:
        raise BadInput(f"{given}: no checkpoint that verifies; run `vlm train` first, or name an adapter's folder")
    return folder / "adapter"


def run_of(adapter: Path) -> Path | None:
    """The run of RUN/checkpoints/STEP/adapter."""
    checkpoints = adapter.resolve().parent.parent
    return checkpoints.parent if checkpoints.name == "checkpoints" else None


def recipe_of(run: Path) -> dict[str, Any]:
    """What a run was trained with; empty where that cannot be read."""
    try:
        with open(run / "recipe.yaml", "rb") as handle:
            found = yaml.safe_load(handle.read(_MOST_RECIPE).decode("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def template_of(run: Path | None) -> str:
    """The chat template that a run was trained with, as its recipe names it; "" for the base's own."""
    data = recipe_of(run).get("data") if run else None
    told = data.get("template") if isinstance(data, dict) else None
    return told if isinstance(told, str) else ""


def check_base(adapter: Path, base: Path) -> None:
    """BadInput where a checkpoint says that its adapter was trained on another base."""
    state = adapter.parent / "state.json"
    if not state.exists():
        return
    from vlm.model.parts import weights_digest

    told = read_json(state)
    if not isinstance(told, dict) or told.get("base") != weights_digest(base):
        raise BadInput(f"{adapter}: was trained on another base than {base}, as {state} says")
