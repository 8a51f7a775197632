"""Whether a stage's output stands: whole, by its digests, and made from what the recipe says now."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from launch.recipe import PipelineRecipe
from shards.build.raw import RawSet
from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.info import DATASET_FILE, read_info
from shards.translate.config import TranslateConfig
from shards.verify import verify


def or_not(stands: Callable[[], bool]) -> Callable[[], bool]:
    """The same, false where it cannot be told: the stage's own command says what is wrong."""

    def told() -> bool:
        try:
            return stands()
        except BadInput:
            return False

    return told


def sets_stand(sets: list[RawSet]) -> bool:
    """Whether every set that has a reader is built."""
    return all(each.stands() for each in sets if each.reader)


def translations_stand(sets: list[RawSet], config: TranslateConfig) -> bool:
    """Whether every set that is translated is so, by these engines, from the source that is there."""
    return all(_translated(each, config) for each in sets if each.translated)


def _translated(each: RawSet, config: TranslateConfig) -> bool:
    out = Path(each.translated)
    if not (out / DATASET_FILE).exists():
        return False
    info, source = read_info(out), ShardDataset.open(Path(each.out))
    engine = info.engine or {}
    wanted = {
        "name": config.engine.replace(" ", ""),
        "source_lang": config.source_lang,
        "target_lang": config.target_lang,
        "max_rejected": config.max_rejected,
        "quality": asdict(config.quality),
    }
    same = {key: engine.get(key) for key in wanted} == wanted
    return same and (info.translated_from or {}).get("digest") == source.digest and not verify(out)


def training_stands(recipe: PipelineRecipe) -> bool:
    """Whether the newest checkpoint is the last step of this recipe."""
    if not any((Path(recipe.run) / "checkpoints").glob("step-*/MANIFEST.json")):
        return False
    from vlm.inputs import finished

    return finished(recipe)


def evaluation_stands(recipe: PipelineRecipe) -> bool:
    """Whether the result of `eval` is there, of the adapter that it means now."""
    if not (Path(recipe.run) / "eval" / recipe.eval.name / "result.json").exists():
        return False
    from vlm.eval.run import standing

    return standing(recipe)


def merge_stands(recipe: PipelineRecipe) -> bool:
    """Whether RUN/merged is whole, and of the adapter that `eval` means now."""
    out = Path(recipe.run) / "merged"
    if not (out / "MANIFEST.json").exists():
        return False
    from vlm.merge.run import standing

    return standing(recipe, out)
