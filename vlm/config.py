"""Recipes: YAML files of typed sections, checked before anything is loaded.

Each section's dataclass stands beside its owner; a recipe states only its difference from its `base`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shards.errors import BadInput
from shards.files import write_atomic
from shards.translate.config import TranslateConfig, check_engines
from vlm.checkpoint import CheckpointConfig
from vlm.data.loader import DataConfig
from vlm.engine import EngineConfig
from vlm.eval.config import EvalConfig
from vlm.heldout import HeldoutConfig
from vlm.model.adapter import AdapterConfig
from vlm.model.load import ModelConfig
from vlm.optim import OptimConfig
from vlm.translation import MAKERS

RECIPES = Path(__file__).parent / "recipes"
_LARGEST = 2**40


@dataclass(kw_only=True)
class Recipe:
    """A whole recipe of the model's floor."""

    name: str = "run"
    """Name of the experiment, shown in logs and job names."""
    run: str = "runs/run"
    """Run directory: everything the recipe writes lies under it."""
    seed: int = 0
    """Seeds the data order, augmentation and the adapter's initial weights."""
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    translate: TranslateConfig = field(default_factory=TranslateConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise BadInput(f"seed: {self.seed} must be at least 0")
        for key, text in {
            "name": self.name,
            "run": self.run,
            "model.base": self.model.base,
            "data.train": self.data.train,
            "data.template": self.data.template,
            "heldout.data": self.heldout.data,
            "engine.deepspeed": self.engine.deepspeed,
        }.items():
            # they are shown in messages, job scripts and labels, a line each
            if not text.isprintable():
                raise BadInput(f"{key}: {text!r} holds a line break or another control character; take it out")
        check_engines(self.translate, MAKERS)

    def save(self, path: Path) -> None:
        """Write the resolved recipe; loading it again gives an equal one."""
        write_atomic(path, OmegaConf.to_yaml(OmegaConf.structured(self)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values by section."""
        content: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(self))  # type: ignore[assignment]
        return content


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def load_recipe(cls: type[AnyRecipe], name: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe by name or path, lay it over its bases, apply `key=value` overrides, check every key and type.

    Raises BadInput with the file, the key and the nearest known key.
    """
    merged = OmegaConf.structured(cls)
    for source, content in [*_layers(name, ()), ("command line", _dotlist(overrides))]:
        _refuse_unknown(source, content, cls, "")
        try:
            merged = OmegaConf.merge(merged, content)
        except OmegaConfBaseException as error:
            raise BadInput(f"{source}: {error.full_key}: {str(error.msg).splitlines()[0]}") from None
        except TypeError as error:
            # a mapping where a list belongs
            raise BadInput(f"{source}: {str(error).splitlines()[0]}; a list stands in [], a section in {{}}") from None
    _refuse_extreme(OmegaConf.to_container(merged), "")
    recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, cls)
    return recipe


Section = TypeVar("Section")


def load_section(cls: type[Section], overrides: Sequence[str]) -> Section:
    """One section from `key=value` texts alone, checked as in a recipe."""
    content = _dotlist(overrides)
    _refuse_unknown("command line", content, cls, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), content)
        _refuse_extreme(OmegaConf.to_container(merged), "")
        section = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise BadInput(f"command line: {error.full_key}: {str(error.msg).splitlines()[0]}") from None
    assert isinstance(section, cls)
    return section


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases: a few lines of them make a value without end, or of gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias; write the value itself")
        return super().compose_node(parent, index)


def _layers(name: str, seen: tuple[Path, ...]) -> list[tuple[str, dict[str, Any]]]:
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
    below = _layers(str(base), (*seen, path)) if base is not None else []
    return [*below, (str(path), content)]


def _find(name: str) -> Path:
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if path.is_file():
        return path.resolve()
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    raise BadInput(f"recipe {name}: no such file; give a path or a known name{_nearest(name, known)}")


def _dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        if "=" not in override:
            raise BadInput(f"command line: {override!r} is not key=value")
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise BadInput(f"command line: {' '.join(str(error).split())}") from None
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def _refuse_unknown(source: str, content: dict[str, Any], cls: type, prefix: str) -> None:
    known = {f.name: f for f in fields(cls)}
    for key, value in content.items():
        if key not in known:
            nearest = _nearest(f"{prefix}{key}", [prefix + name for name in known])
            raise BadInput(f"{source}: unknown key {prefix}{key}{nearest}")
        inner = known[key].default_factory
        if "${" in str(value):
            raise BadInput(f"{source}: {prefix}{key}: interpolation is not supported, write the value")
        if isinstance(inner, type) and is_dataclass(inner):
            if not isinstance(value, dict):
                raise BadInput(f"{source}: {prefix}{key} is a section, write {prefix}{key}.<key>")
            _refuse_unknown(source, value, inner, f"{prefix}{key}.")


def _refuse_extreme(value: Any, key: str) -> None:
    """BadInput for a number that none can mean, which would pass comparisons or exhaust the machine, and for NUL."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_extreme(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            _refuse_extreme(inner, key)
    elif isinstance(value, int | float) and not abs(value) < _LARGEST:
        raise BadInput(f"{key}: {value} is not a number below {_LARGEST}")
    elif isinstance(value, str) and "\0" in value:
        raise BadInput(f"{key}: holds a NUL character; take it out")


def _nearest(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else f"; known: {', '.join(known)}"
