"""Parameters and FLOPs of a training, from shapes alone.

FLOPs of one sample of T tokens (those that a method puts before it included), of which S carry a loss, with I images of
P patches:

    T · (4·N + 6·N_lora) + 12·L·d·K + 4·H·S + I · (vision + projector)

N: frozen linear parameters of the language model's layers (2 forward, 2 for the gradient that passes through);
N_lora: its trained ones (2 more for their own gradient). Where a document's s tokens are all visible, the K keys that
its queries see together are s²/2, and 12·L·d·K is 6·L·d·s a token; a window or a shared prefix makes K smaller. L
layers, d width of the queries; H head parameters, 6 instead of 4 where they are trained. Of a mixture's experts N
counts those that one token meets. vision = 2·N_v·(P + 1) + 4·L_v·d_v·(P + 1)², three times that where the tower is
trained; projector = 6·N_p·P, or 2·N_p·P where it is frozen.

Recomputed blocks run forward twice: T · (2·N + 2·N_lora) + 4·L·d·K more for their share of the layers, and as much as
vision for theirs of a trained tower.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import nn

from vlm.estimate.rows import MeanSample
from vlm.model.adapter import PROJECTOR

_PARTS = ("language_model", "lm_head", "vision_tower", PROJECTOR)


@dataclass(frozen=True)
class Parameters:
    """Counts: of all weights, by part those of linear layers as (frozen, trained), and those of each trained tensor."""

    total: int
    trained: int
    linear: dict[str, tuple[int, int]]
    sizes: tuple[int, ...] = ()


def count_parameters(model: nn.Module, config: Any) -> Parameters:
    """Counts of the model as training has built it; its weights may lie on torch's meta device."""
    linear = dict.fromkeys(_PARTS, (0, 0))
    for name, module in model.named_modules():
        owners = name.split(".")
        part = next((part for part in _PARTS if part in owners), None)
        # PEFT keeps the projector as it was beside the one that it trains, and never runs it; the network that makes
        # p-tuning's virtual tokens runs on them alone, once a row
        if part is None or "original_module" in owners:
            continue
        for size, learns in _products(module, config):
            frozen, trained = linear[part]
            linear[part] = (frozen, trained + size) if learns else (frozen + size, trained)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    learning = tuple(n for n, learns in sizes if learns)
    return Parameters(sum(n for n, _ in sizes), sum(learning), linear, learning)


def _products(module: nn.Module, config: Any) -> list[tuple[int, bool]]:
    """Sizes of the matrices that a token meets in this very module, and whether they are trained."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return [(module.weight.numel(), module.weight.requires_grad)]
    # transformers keeps a layer's experts in one tensor (experts, out, in)
    experts = getattr(config.text_config, "num_local_experts", None)
    if not experts:
        return []
    met = config.text_config.num_experts_per_tok
    own = [p for p in module.parameters(recurse=False) if p.dim() == 3 and len(p) == experts]
    return [(p.numel() * met // experts, p.requires_grad) for p in own]


def flop_per_sample(parameters: Parameters, lengths: MeanSample, config: Any) -> float:
    """FLOPs of a mean sample, forward and backward, by the formula above, nothing computed twice."""
    n = parameters.linear
    language = lengths.tokens * (4 * n["language_model"][0] + 6 * n["language_model"][1])
    attention = 12 * _queries(config) * lengths.keys
    head = lengths.supervised * (4 * n["lm_head"][0] + 6 * n["lm_head"][1])
    tower = _tower(parameters, config) * (3 if n["vision_tower"][1] else 1)
    projector = _patches(config) * (2 * n[PROJECTOR][0] + 6 * n[PROJECTOR][1])
    return float(language + attention + head + lengths.images * (tower + projector))


def recomputed_per_sample(parameters: Parameters, lengths: MeanSample, config: Any, checkpoint_blocks: int) -> float:
    """FLOPs of a mean sample that `model.checkpoint_blocks` computes a second time."""
    if not checkpoint_blocks:
        return 0.0
    n = parameters.linear
    language = 2 * lengths.tokens * sum(n["language_model"]) + 4 * _queries(config) * lengths.keys
    tower = lengths.images * _tower(parameters, config) if n["vision_tower"][1] else 0.0
    text, vision = config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers
    return float(language * _share(text, checkpoint_blocks) + tower * _share(vision, checkpoint_blocks))


def _share(layers: int, every: int) -> float:
    return ceil(layers / every) / layers


def _queries(config: Any) -> int:
    text = config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * text.num_attention_heads * head_dim)


def _patches(config: Any) -> int:
    return int(config.vision_config.image_size // config.vision_config.patch_size) ** 2


def _tower(parameters: Parameters, config: Any) -> float:
    """FLOPs of the tower's forward pass over one image."""
    vision, seen = config.vision_config, _patches(config) + 1
    products = 2 * sum(parameters.linear["vision_tower"]) * seen
    return float(products + 4 * vision.num_hidden_layers * vision.hidden_size * seen**2)
