"""A recipe's YAML files and `key=value` texts, read but not yet checked: all this needs no torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shards.errors import BadInput, nearest

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RUN = "runs/run"
# 20:00 is 1200 to YAML
_BASE_60, _PLAIN = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+"), "write a plain number, or quote a text"


def run_folder(name: str, overrides: Sequence[str] = ()) -> Path:
    """The run directory of a recipe, whatever else is wrong with it; BadInput where that cannot be told."""
    given = [content["run"] for _, content in [*layers(name), ("", dotlist(overrides))] if "run" in content]
    run = given[-1] if given else DEFAULT_RUN
    if not isinstance(run, str | int | float) or not str(run).isprintable() or "${" in str(run):
        raise BadInput(f"run: {run!r:.200} is no name of a folder")
    return Path(str(run))


def layers(name: str, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(file, content) of a recipe by name or path and of its bases, the lowest first; BadInput names the file."""
    path = _find(name)
    if path in seen:
        raise BadInput(f"{path}: base: a recipe cannot stand on itself")
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader) or {}
    except RecursionError:
        raise BadInput(f"{path}: not a YAML recipe (nested too deep)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: not a YAML recipe ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a recipe is a mapping of sections")
    base = content.pop("base", None)
    below = layers(str(base), (*seen, path)) if base is not None else []
    return [*below, (str(path), content)]


def dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    """Sections from `key=value` texts; BadInput for another text."""
    for override in overrides:
        if "=" not in override:
            raise BadInput(f"command line: {override!r} is not key=value")
        if _BASE_60.fullmatch(override.partition("=")[2]):
            raise BadInput(f"command line: {override!r}: YAML reads that to base 60; {_PLAIN}")
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise BadInput(f"command line: {' '.join(str(error).split())}") from None
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases: a few lines of them make a value without end, or of gigabytes."""

    def construct_yaml_int(self, node: Any) -> Any:
        if _BASE_60.fullmatch(node.value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: YAML reads {node.value} to base 60; {_PLAIN}")
        return super().construct_yaml_int(node)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias; write the value itself")
        return super().compose_node(parent, index)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _find(name: str) -> Path:
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if path.is_file():
        return path.resolve()
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    raise BadInput(f"recipe {name}: no such file; give a path or a known name{nearest(name, known)}")
