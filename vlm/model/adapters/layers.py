"""Which layers of the language model a method adapts, and the part that any method may train beside them."""

from collections.abc import Sequence

from torch import nn
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput

PROJECTOR = "multi_modal_projector"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def target_pattern(model: LlavaForConditionalGeneration, targets: Sequence[str], default: Sequence[str]) -> str:
    """A pattern of the full names of `targets` in the language model, of `default` where there are none.

    Raises BadInput for a last name that no linear layer there has.
    """
    layers = model.model.language_model.named_modules()
    known = {name.rpartition(".")[2] for name, layer in layers if isinstance(layer, nn.Linear)}
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise BadInput(f"adapter.targets: no layer {unknown[0]!r}; the language model has {', '.join(sorted(known))}")
    chosen = list(targets) or [name for name in default if name in known]
    if not chosen:
        raise BadInput(f"adapter.targets: empty, and the language model has other layers: {', '.join(sorted(known))}")
    return rf".*language_model\..*\.({'|'.join(chosen)})"


def beside(projector: bool) -> list[str] | None:
    """PEFT's `modules_to_save`."""
    return [PROJECTOR] if projector else None
