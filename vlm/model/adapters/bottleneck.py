"""Bottleneck adapters: a small residual network behind attention and feed-forward. PEFT has no such method.

Saved as `adapter_config.json` with `"peft_type": "BOTTLENECK"` and `adapter_model.safetensors` with the names that the
weights have in the LLaVA model. Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (2019).
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from shards.files import write_json
from vlm.model.adapters.layers import target_pattern
from vlm.model.assemble import Assembly

BOTTLENECK = "BOTTLENECK"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
# what these two return is added to the residual stream
_OUTPUTS = ("o_proj", "down_proj")


@dataclass(frozen=True)
class BottleneckOptions:
    """Of method bottleneck."""

    width: int = 64
    activation: str = "gelu"
    targets: tuple[str, ...] = ()
    projector: bool = True

    def __post_init__(self) -> None:
        if self.width < 1:
            raise BadInput(f"adapter.width: {self.width} must be at least 1")
        if self.activation not in ACTIVATIONS:
            raise BadInput(f"adapter.activation: {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")


class Bottleneck(nn.Module):
    """`y + up(activation(down(y)))` of a linear layer's output y; starts as that layer."""

    def __init__(self, base_layer: nn.Linear, options: BottleneckOptions) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": base_layer.weight.device, "dtype": base_layer.weight.dtype}
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.out_features, options.width, **place)
        self.up = nn.Linear(options.width, base_layer.out_features, **place)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation = ACTIVATIONS[options.activation]

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        out: Tensor = y + self.up(self.activation(self.down(y)))
        return out


class BottleneckModel(nn.Module):
    """A LLaVA model with adapters in it; `base_model` runs with them."""

    def __init__(self, model: LlavaForConditionalGeneration, options: BottleneckOptions) -> None:
        super().__init__()
        pattern = re.compile(target_pattern(model, options.targets, _OUTPUTS))
        for name, layer in [(n, m) for n, m in model.named_modules() if pattern.fullmatch(n)]:
            model.set_submodule(name, Bottleneck(layer, options), strict=True)
        model.model.multi_modal_projector.requires_grad_(options.projector)
        self.base_model, self.options = model, options

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def save_adapter(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write `weights`, named as this module names them."""
        own = {n.removeprefix("base_model."): t.contiguous() for n, t in weights.items()}
        save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(folder / "adapter_config.json", {"peft_type": BOTTLENECK, **asdict(self.options)})


def bottleneck(model: LlavaForConditionalGeneration, options: BottleneckOptions, assembly: Assembly) -> nn.Module:
    """Bottlenecks behind the targets, which are linear layers of the language model."""
    return BottleneckModel(model, options)


def load_bottleneck(model: LlavaForConditionalGeneration, folder: Path, config: dict[str, Any]) -> BottleneckModel:
    """`model` with the adapter in `folder`; raises BadInput where weights and layers do not match one to one."""
    try:
        options = BottleneckOptions(**{n: v for n, v in config.items() if n != "peft_type"})
        options = replace(options, targets=tuple(options.targets))
    except TypeError:
        raise BadInput(f"{folder}/adapter_config.json: garbage; give a checkpoint's adapter folder") from None
    model.requires_grad_(False)
    adapted = BottleneckModel(model, options)
    weights = load_file(folder / "adapter_model.safetensors")
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    odd = weights.keys() ^ wanted.keys()
    if odd:
        raise BadInput(f"{folder}: weights do not fit the base, first {min(odd)}")
    for name, parameter in wanted.items():
        if weights[name].shape != parameter.shape:
            raise BadInput(f"{folder}: does not fit the base ({name} is {tuple(weights[name].shape)})")
        parameter.data.copy_(weights[name])
    model.requires_grad_(False)
    return adapted
