"""LoRA and its variants, all PEFT's; the embeddings of added tokens alone are LoRA without a layer.

Sources: Hu et al., "LoRA" (2021); Kalajdzievski, "A Rank Stabilization Scaling Factor" (2023) for rsLoRA; Liu et al.,
"DoRA" (2024); Dettmers et al., "QLoRA" (2023).
"""

from dataclasses import dataclass

from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from vlm.model.adapters.layers import LINEAR, beside, target_pattern
from vlm.model.adapters.quantised import quantise
from vlm.model.assemble import Assembly


@dataclass(frozen=True)
class LoraOptions:
    """Of method lora."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    projector: bool = True
    new_tokens: bool = True
    align_tokens: bool = True

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise BadInput(
                f"adapter.r={self.r} and adapter.alpha={self.alpha} must be at least 1, "
                f"adapter.dropout={self.dropout} in [0, 1)"
            )


@dataclass(frozen=True)
class QloraOptions(LoraOptions):
    """Of method qlora: those of LoRA."""


@dataclass(frozen=True)
class TokensOptions:
    """Of method tokens."""

    align_tokens: bool = True
    projector: bool = False

    @property
    def new_tokens(self) -> bool:
        """They are what the method is about."""
        return True


def lora(model: LlavaForConditionalGeneration, options: LoraOptions, assembly: Assembly) -> nn.Module:
    """PEFT's LoRA, with rows for added tokens and a copy of the projector beside it."""
    new = learned_tokens(model, assembly) if options.new_tokens else []
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        target_modules=target_pattern(model, options.targets, LINEAR),
        modules_to_save=beside(options.projector),
        trainable_token_indices=_rows(model, new) if new else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def qlora(model: LlavaForConditionalGeneration, options: QloraOptions, assembly: Assembly) -> nn.Module:
    """LoRA over a language model whose own layers are held in 4 bits."""
    return lora(quantise(model), options, assembly)


def tokens(model: LlavaForConditionalGeneration, options: TokensOptions, assembly: Assembly) -> nn.Module:
    """Rows of added tokens alone; raises BadInput where there are none."""
    new = learned_tokens(model, assembly)
    if not new:
        raise BadInput("adapter.method: tokens: `vlm assemble` added no tokens to model.base; assemble it with some")
    config = LoraConfig(
        target_modules=DUMMY_TARGET_MODULES,
        modules_to_save=beside(options.projector),
        trainable_token_indices=_rows(model, new),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def learned_tokens(model: LlavaForConditionalGeneration, assembly: Assembly) -> list[int]:
    """The added tokens that a text can hold: an image's place and padding have no embedding of their own in use.

    A model without others is spared PEFT's copy of the whole vocabulary in every pass.
    """
    unused = (model.config.image_token_id, getattr(model.config, "pad_token_id", None))
    return [token for token in assembly.new_token_ids if token not in unused]


def _rows(model: LlavaForConditionalGeneration, new: list[int]) -> dict[str, list[int]]:
    # PEFT lets a tied head follow the embeddings by itself
    layers = ("embed_tokens",) if model.config.tie_word_embeddings else ("embed_tokens", "lm_head")
    return dict.fromkeys(layers, new)
