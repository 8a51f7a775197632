"""Write a trained model as a plain Hugging Face folder, its processor beside it."""

from pathlib import Path

from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from shards.files import sealed_output
from vlm.checkpoint import newest
from vlm.config import Recipe
from vlm.merge.card import Card
from vlm.merge.companions import Facts, companions
from vlm.model.load import load_model, model_folder


def write_model(
    model: LlavaForConditionalGeneration, origin: Path, out: Path, card: str, extra: dict[str, str] | None = None
) -> None:
    """Save `model` in `out` with what goes beside the weights of `origin`, sealed by a manifest.

    `card` becomes the README.md; `extra` maps further file names to their text.
    """
    if out.resolve() == origin.resolve() or (out / "state.json").exists():
        raise BadInput(f"--out {out}: is the base or a checkpoint; choose another folder")
    with sealed_output(out):
        model.save_pretrained(out)
        companions(origin, out, Facts(card=card))
        for name, text in (extra or {}).items():
            (out / name).write_text(text, "utf-8")


def export(recipe: Recipe, out: Path) -> None:
    """Write the base of a projector or full training with the weights of its newest checkpoint in it.

    Raises BadInput where there is no such checkpoint; an adapter is merged instead.
    """
    origin = model_folder(recipe.model)
    folder = newest(Path(recipe.run))
    if folder is None or not (folder / "model.safetensors").exists():
        raise BadInput(f"{recipe.run}: no checkpoint of a projector or full training; adapters are for `vlm merge`")
    card = Card.of(origin, Path(recipe.run)).text()
    write_model(apply_checkpoint(origin, folder), origin, out, card)


def apply_checkpoint(origin: Path, checkpoint: Path, dtype: str = "float32") -> LlavaForConditionalGeneration:
    """The model of `origin` with the weights of a projector or full training's checkpoint in it."""
    model = load_model(origin, dtype, packed=False)
    weights = load_file(checkpoint / "model.safetensors")
    # the checkpoint names weights as the packed module does, which holds the model as `model`
    renamed = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    unexpected = model.load_state_dict(renamed, strict=False).unexpected_keys
    assert not unexpected, unexpected
    return model
