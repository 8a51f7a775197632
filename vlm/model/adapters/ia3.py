"""(IA)³, PEFT's: keys, values and the feed-forward's inner activation rescaled by learned vectors.

Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning" (2022).
"""

from dataclasses import dataclass

from peft import IA3Config, get_peft_model
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm.model.adapters.layers import beside, target_pattern
from vlm.model.assemble import Assembly

# the layers that the paper rescales; PEFT scales the input of a feed-forward one, the output of any other
_SCALED = ("k_proj", "v_proj", "down_proj")
_FEED_FORWARD = r".*\.down_proj"


@dataclass(frozen=True)
class Ia3Options:
    """Of method ia3."""

    targets: tuple[str, ...] = ()
    projector: bool = True


def ia3(model: LlavaForConditionalGeneration, options: Ia3Options, assembly: Assembly) -> nn.Module:
    """PEFT's (IA)³."""
    config = IA3Config(
        target_modules=target_pattern(model, options.targets, _SCALED),
        feedforward_modules=_FEED_FORWARD,
        modules_to_save=beside(options.projector),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
