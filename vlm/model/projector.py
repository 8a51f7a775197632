"""The projector from the tower's patches to the language model's embeddings: new, or with trained weights."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from shards.errors import BadInput
from vlm.model.parts import UNREADABLE

KINDS = {"mlp": "gelu", "linear": "linear"}
# LLaVA counts the activation as a layer of its own; its linear projector is one layer without a number
_NAMES = {
    "0.weight": "linear_1.weight",
    "0.bias": "linear_1.bias",
    "2.weight": "linear_2.weight",
    "2.bias": "linear_2.bias",
    "weight": "linear_1.weight",
    "bias": "linear_1.bias",
}


def new_projector(config: LlavaConfig, dtype: torch.dtype) -> LlavaMultiModalProjector:
    """A projector whose weights are drawn as transformers draws them: LLaVA 1.5's two layers, or a linear map.

    LLaVA's class in transformers always has two layers. A linear projector is written as one with no activation
    between them, whose second layer is the identity and stays it (`keep_identity`).
    """
    projector = LlavaMultiModalProjector(config)
    std = getattr(config.text_config, "initializer_range", 0.02)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    if config.projector_hidden_act == KINDS["linear"]:
        nn.init.eye_(projector.linear_2.weight)
    return projector.to(dtype)


def load_projector(projector: LlavaMultiModalProjector, kind: str, file: Path, anew: bool) -> bool:
    """Copy trained weights into `projector`: LLaVA's `mm_projector.bin`, or safetensors with those or
    transformers' names. Whether it did: weights of another shape are refused, or with `anew` left out.

    Two linear layers of a linear projector become one and the identity.
    """
    found = _read(file)
    wanted = projector.state_dict()
    identity = {name: wanted[name] for name in ("linear_2.weight", "linear_2.bias")}
    if kind == "linear" and "linear_2.weight" not in found:
        found |= identity
    here, there = _shapes(found), _shapes(wanted)
    if here != there:
        if anew:
            return False
        raise BadInput(
            f"--projector-weights {file}: {here} does not fit these models, {there}; --reinit-projector starts anew"
        )
    if kind == "linear":
        found = _folded(found) | identity
    projector.load_state_dict(found)
    return True


def keep_identity(projector: LlavaMultiModalProjector, activation: str) -> None:
    """Take the second layer of a linear projector out of training: its weights are saved and loaded, never learned.

    Two trained matrices in a row would be several times the parameters of the one that they amount to.
    """
    layer = projector.linear_2
    if activation != KINDS["linear"]:
        return
    # of a model that is only counted there are no values to look at
    if not layer.weight.is_meta and not torch.equal(layer.weight, torch.eye(*layer.weight.shape).to(layer.weight)):
        return
    for name, value in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
        layer.register_buffer(name, value.detach())


def _folded(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """`linear_1` that does what both layers do, in their dtype."""
    first, second = layers["linear_1.weight"], layers["linear_2.weight"].double()
    bias = second @ layers["linear_1.bias"].double() + layers["linear_2.bias"].double()
    weight = second @ first.double()
    return {"linear_1.weight": weight.to(first.dtype), "linear_1.bias": bias.to(first.dtype)}


def _shapes(weights: dict[str, Tensor]) -> str:
    layers = [f"{w.shape[1]} → {w.shape[0]}" for name, w in sorted(weights.items()) if name.endswith("weight")]
    return ", ".join(layers) + ("" if len(weights) == 2 * len(layers) else " (not all biases)")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                content = {name: opened.get_tensor(name) for name in opened.keys() if _name(name)}  # noqa: SIM118
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise BadInput(f"--projector-weights {file}: no tensors can be read without running its code") from error
    except UNREADABLE as error:
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"--projector-weights {file}: no tensors can be read ({said})") from error
    tensors = content.items() if isinstance(content, dict) else ()
    weights = {_name(str(name)): tensor for name, tensor in tensors if isinstance(tensor, Tensor) and _name(str(name))}
    if not weights or any(w.dim() != (2 if name.endswith("weight") else 1) for name, w in weights.items()):
        raise BadInput(f"--projector-weights {file}: holds no mm_projector.* or multi_modal_projector.* weights")
    return weights


def _name(key: str) -> str:
    """The name of a weight inside the projector; empty for weights of something else."""
    for prefix in ("mm_projector.", "multi_modal_projector."):
        before, found, name = key.rpartition(prefix)
        if found and (not before or before.endswith(".")):
            return _NAMES.get(name, name if name in _NAMES.values() else "")
    return ""
