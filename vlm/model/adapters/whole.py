"""Training weights of the model itself: all of them, or the projector alone (LLaVA's first stage)."""

from dataclasses import dataclass

from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm.model.assemble import Assembly


@dataclass(frozen=True)
class FullOptions:
    """Of method full."""

    tower: bool = False


@dataclass(frozen=True)
class ProjectorOptions:
    """Of method projector: there are none."""


def full(model: LlavaForConditionalGeneration, options: FullOptions, assembly: Assembly) -> nn.Module:
    """Everything, the tower only where it is asked for."""
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(options.tower)
    return model


def projector(model: LlavaForConditionalGeneration, options: ProjectorOptions, assembly: Assembly) -> nn.Module:
    """The projector alone."""
    model.model.multi_modal_projector.requires_grad_(True)
    return model
