"""A merge of what a recipe means, as `vlm merge RECIPE` does it."""

from pathlib import Path

from vlm.config import Recipe
from vlm.merge.proof import Proof
from vlm.merge.run import Checks, Origin, merge, of_recipe


def merge_recipe(recipe: Recipe, out: Path) -> Proof:
    plan, data = of_recipe(recipe, out)
    return merge(plan, Checks(data=data), Origin(Path(recipe.run), recipe.data.template))
