"""What was run: RUN/run.json and RUN/recipe.yaml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shards.errors import BadInput
from shards.files import read_json
from vlm.report.wording import clean

_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class About:
    """Facts of a run as (name, value); `notes` says what is missing. `recipe` is the file's text, shortened."""

    name: str
    device: str
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    recipe: str
    notes: tuple[str, ...]


def read_about(run: Path) -> About:
    """Read both files; a missing or broken one becomes a note."""
    notes: list[str] = []
    info = _run_json(run / "run.json", notes)
    text, recipe = _recipe(run / "recipe.yaml", notes)
    versions = info.get("versions")
    name = recipe.get("name")
    return About(
        name=clean(name, 80) if isinstance(name, str) and name.strip() else clean(run.resolve().name, 80),
        device=_plain(info.get("device")),
        facts=tuple((title, value) for title, value in _facts(info, recipe) if value),
        versions=tuple((clean(str(package), 40), _plain(number)) for package, number in _mapping(versions).items()),
        recipe=text,
        notes=tuple(notes),
    )


def _facts(info: dict[str, Any], recipe: dict[str, Any]) -> list[tuple[str, str]]:
    command = info.get("command")
    return [
        ("device", _plain(info.get("device"))),
        ("host", _plain(info.get("host"))),
        ("slurm job", _plain(info.get("slurm_job"))),
        ("commit", _plain(info.get("git"))),
        ("command", clean(" ".join(map(str, command)), 500) if isinstance(command, list) else _plain(command)),
        ("base model", _plain(_mapping(recipe.get("model")).get("base"))),
        ("training data", _plain(_mapping(recipe.get("data")).get("train"))),
        ("seed", _plain(recipe.get("seed"))),
    ]


def _plain(value: Any) -> str:
    return clean(str(value), 500) if isinstance(value, str | int | float) else ""


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _run_json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return _mapping(read_json(path, _MAX_BYTES))
    except BadInput:
        notes.append("run.json is missing or broken: versions, host and device are unknown")
        return {}


def _recipe(path: Path, notes: list[str]) -> tuple[str, dict[str, Any]]:
    try:
        with open(path, "rb") as handle:
            text = handle.read(_MAX_BYTES).decode("utf-8")
        content = _mapping(yaml.safe_load(text))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        notes.append("recipe.yaml is missing or broken: the settings are unknown")
        return "", {}
    return "\n".join(_indented(line) for line in text[: 64 * 1024].splitlines()), content


def _indented(line: str) -> str:
    body = line.lstrip(" ")
    return " " * (len(line) - len(body)) + clean(body, 300)
