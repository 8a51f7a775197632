"""The projector alone, as the original LLaVA repository keeps it: `mm_projector.bin`, and the same as safetensors.

Its names are those of LLaVA's `train.py`, which `--pretrain_mm_mlp_adapter` and `load_pretrained_model` read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import sealed_output, write_atomic
from vlm.merge.adapter import Adapter, Edits
from vlm.merge.layout import Layout

BIN, SAFETENSORS = "mm_projector.bin", "mm_projector.safetensors"
_LAYERS = {"linear_1": "0.", "linear_2": "2."}


def write_projector(model: Path, out: Path, adapter: Path | None = None) -> dict[str, Any]:
    """Write both files and a README.md into `out`; LLaVA's settings for them.

    The projector is the model folder's, or the one that an adapter of it has trained. BadInput where the original
    repository has none like it.
    """
    from safetensors.torch import save

    layout = Layout.read(model)
    told = settings(layout)
    weights = _llava_names(layout, tensors(layout, adapter))
    with sealed_output(out):
        # a pickle, as that repository reads no other; nothing here ever reads one
        torch.save(weights, out / BIN)
        # its own file is for the owner alone
        write_atomic(out / SAFETENSORS, save(weights))
        about = json.dumps(told, indent=4, ensure_ascii=False)
        write_atomic(
            out / "README.md",
            f"# Projector of {plain(model.name)}\n\nFor haotian-liu/LLaVA: `--pretrain_mm_mlp_adapter {BIN}`, or "
            "beside a language model whose config.json has\n\n"
            + "".join(f"    {line}\n" for line in about.splitlines()),
        )
    return told


def settings(layout: Layout) -> dict[str, Any]:
    """What a LLaVA config.json says of such a projector."""
    config = layout.config
    kinds = {"gelu": "mlp2x_gelu", "linear": "linear"}
    kind = kinds.get(str(config.get("projector_hidden_act")))
    vision = config.get("vision_config")
    if config.get("model_type") != "llava" or kind is None or not isinstance(vision, dict):
        raise BadInput(f"{layout.folder}: no LLaVA model with a projector of two layers and GELU, or of one layer")
    return {
        "mm_projector_type": kind,
        "mm_hidden_size": vision.get("hidden_size"),
        "mm_vision_select_layer": config.get("vision_feature_layer"),
        "mm_vision_select_feature": "patch"
        if config.get("vision_feature_select_strategy") == "default"
        else "cls_patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }


def tensors(layout: Layout, adapter: Path | None = None) -> dict[str, torch.Tensor]:
    """The projector's weights by transformers' names, after the adapter's changes, in the base's dtype."""
    edits = None
    if adapter:
        read = Adapter.read(adapter)
        read.check(layout)
        edits = Edits(layout, read)
    found = {}
    prefix = "model.multi_modal_projector."
    for parameter, stored in layout.tensors.items():
        if parameter.startswith(prefix):
            values = stored.read()
            if edits and edits.shape(stored) is not None:
                changed = values.float()
                edits.change(stored).apply(changed, 0)
                values = changed.to(stored.dtype)
            found[parameter.removeprefix(prefix)] = values
    return found


def _llava_names(layout: Layout, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if settings(layout)["mm_projector_type"] == "linear":
        second = weights["linear_2.weight"]
        if weights["linear_2.bias"].any() or not torch.equal(second, torch.eye(len(second)).to(second)):
            raise BadInput(f"{layout.folder}: its linear projector has two layers, the original LLaVA's has one")
        return {f"model.mm_projector.{part}": weights[f"linear_1.{part}"] for part in ("weight", "bias")}
    return {
        f"model.mm_projector.{number}{part}": weights[f"{layer}.{part}"]
        for layer, number in _LAYERS.items()
        for part in ("weight", "bias")
    }
