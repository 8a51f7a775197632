"""Write a trained model as a plain Hugging Face folder, its processor beside it."""

import shutil
from pathlib import Path

from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from shards.files import sealed_output
from vlm.checkpoint import newest
from vlm.config import Recipe
from vlm.data.images import Pixels
from vlm.model.load import load_model, model_folder

COMPANIONS = (
    "assembly.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

_TILED = """
## Images in tiles

An image is given as LLaVA-1.5-HD does: the whole made square, then up to {} tiles of its full resolution, each an
image of its own for `LlavaForConditionalGeneration`. `LLaVADataProcessor` of ruvlm makes them, and its tensors go
into plain transformers as they are:

    inputs = LLaVADataProcessor(folder)("What is this?", ["photo.jpg"])
    model.generate(**inputs)

The processor in this folder, transformers' own, gives the whole image alone, at the tower's resolution. To give it
tiles, cut them yourself and write one `<image>` for each, without anything between them.
"""


def write_model(
    model: LlavaForConditionalGeneration, origin: Path, out: Path, card: str, extra: dict[str, str] | None = None
) -> None:
    """Save `model` in `out` with the processor files of `origin`, sealed by a manifest.

    `card` becomes the README.md; `extra` maps further file names to their text.
    """
    if out.resolve() == origin.resolve() or (out / "state.json").exists():
        raise BadInput(f"--out {out}: is the base or a checkpoint; choose another folder")
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config._name_or_path = ""
    # training switches it off; whoever generates wants it
    model.config.use_cache = model.config.text_config.use_cache = True
    tiles = Pixels.of(origin).tiles
    with sealed_output(out):
        model.save_pretrained(out)
        for name in COMPANIONS:
            if (origin / name).exists():
                shutil.copyfile(origin / name, out / name)
        for name, text in {"README.md": card + (_TILED.format(tiles) if tiles else ""), **(extra or {})}.items():
            (out / name).write_text(text, "utf-8")


def export(recipe: Recipe, out: Path) -> None:
    """Write the base of a projector or full training with the weights of its newest checkpoint in it.

    Raises BadInput where there is no such checkpoint; an adapter is merged instead.
    """
    origin = model_folder(recipe.model)
    folder = newest(Path(recipe.run))
    if folder is None or not (folder / "model.safetensors").exists():
        raise BadInput(f"{recipe.run}: no checkpoint of a projector or full training; adapters are for `vlm merge`")
    write_model(apply_checkpoint(origin, folder), origin, out, f"# {recipe.name}, {folder.name}\n")


def apply_checkpoint(origin: Path, checkpoint: Path, dtype: str = "float32") -> LlavaForConditionalGeneration:
    """The model of `origin` with the weights of a projector or full training's checkpoint in it."""
    model = load_model(origin, dtype, packed=False)
    weights = load_file(checkpoint / "model.safetensors")
    # the checkpoint names weights as the packed module does, which holds the model as `model`
    renamed = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    unexpected = model.load_state_dict(renamed, strict=False).unexpected_keys
    assert not unexpected, unexpected
    return model
