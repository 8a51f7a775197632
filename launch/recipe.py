"""A recipe with the launcher's own section."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from launch.cluster import ClusterConfig
from vlm.config import Recipe, load_recipe


@dataclass(kw_only=True)
class PipelineRecipe(Recipe):
    """What `vlm` commands read: the model's sections and `cluster`."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def load(name: str, overrides: Sequence[str] = ()) -> PipelineRecipe:
    """The recipe of that name or path with `key=value` overrides; BadInput names file and key."""
    return load_recipe(PipelineRecipe, name, overrides)
