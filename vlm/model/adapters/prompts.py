"""Prompt tuning, p-tuning and prefix tuning, PEFT's: what is learned stands before every document of a packed row.

Prompt tuning and p-tuning put virtual tokens there. Prefix tuning puts keys and values there, in every layer: its slots
in the row carry zeros, and attention exchanges their keys and values for the learned ones. Either way positions, the
shared prefix and a sliding window count the slots, as they do when PEFT runs one document.

Sources: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning" (2021); Liu et al., "GPT Understands,
Too" (2021); Li and Liang, "Prefix-Tuning" (2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoder,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from vlm.model.adapters.layers import beside
from vlm.model.assemble import Assembly
from vlm.model.attention import Layout, Segment

_ENCODER = "prompt_encoder.default."
# PEFT's unit normal is as loud as a trained model's keys and values are
_PREFIX_SPREAD = 0.02


@dataclass(frozen=True)
class PromptOptions:
    """Of method prompt: virtual tokens before every document, started at tokens drawn from the vocabulary."""

    virtual_tokens: int = 20
    projector: bool = True

    def __post_init__(self) -> None:
        if self.virtual_tokens < 1:
            raise BadInput(f"adapter.virtual_tokens: {self.virtual_tokens} must be at least 1")


@dataclass(frozen=True)
class PrefixOptions(PromptOptions):
    """Of method prefix: `virtual_tokens` keys and values in every layer."""


@dataclass(frozen=True)
class PtuningOptions(PromptOptions):
    """Of method ptuning: the virtual tokens come from a small network, which is not saved: its output is."""

    encoder_width: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_width < 1:
            raise BadInput(f"adapter.encoder_width: {self.encoder_width} must be at least 1")


def prompt(model: LlavaForConditionalGeneration, options: PromptOptions, assembly: Assembly) -> nn.Module:
    """PEFT's prompt tuning."""
    config = PromptTuningConfig(
        num_virtual_tokens=options.virtual_tokens,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        modules_to_save=beside(options.projector),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def ptuning(model: LlavaForConditionalGeneration, options: PtuningOptions, assembly: Assembly) -> nn.Module:
    """PEFT's p-tuning with an MLP of three layers."""
    config = PromptEncoderConfig(
        num_virtual_tokens=options.virtual_tokens,
        encoder_hidden_size=options.encoder_width,
        modules_to_save=beside(options.projector),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def prefix(model: LlavaForConditionalGeneration, options: PrefixOptions, assembly: Assembly) -> nn.Module:
    """PEFT's prefix tuning without reparametrisation."""
    config = PrefixTuningConfig(
        num_virtual_tokens=options.virtual_tokens,
        modules_to_save=beside(options.projector),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    encoder: Any = adapted.prompt_encoder["default"]
    nn.init.normal_(encoder.embedding.weight, std=_PREFIX_SPREAD)
    return adapted


def is_prompted(model: nn.Module) -> bool:
    """Whether `model` learns something that stands before every document."""
    return isinstance(model, PeftModel) and bool(model.active_peft_config.is_prompt_learning)


@dataclass(frozen=True)
class PromptedRow:
    """A row with slots before every document: `embeds_TD`, `position_ids` (T,); `own` int64 are its other tokens."""

    embeds_TD: Tensor
    position_ids: Tensor
    layout: Layout
    own: Tensor | None


def put_prompts(model: nn.Module, embeds_TD: Tensor, position_ids: Tensor, layout: Layout) -> PromptedRow:
    """The row as `model`'s language model must see it; without a prompt, as it is."""
    if not is_prompted(model):
        return PromptedRow(embeds_TD, position_ids, layout, None)
    assert isinstance(model, PeftModel)
    learned: Any = model.get_prompt(batch_size=1)
    if isinstance(learned, Tensor):
        slots_KD, pairs = learned[0].to(embeds_TD.dtype), []
    else:
        pairs = [(layer.keys[0], layer.values[0]) for layer in learned.layers]
        slots_KD = embeds_TD.new_zeros(pairs[0][0].shape[1], embeds_TD.shape[1])
    count, device = len(slots_KD), embeds_TD.device
    bounds = [(a + count * d, b + count * (d + 1)) for d, (a, b) in enumerate(layout.documents)]
    source = torch.cat([torch.cat([torch.arange(count), torch.arange(a, b) + count]) for a, b in layout.documents]).to(
        device
    )
    is_slot = source < count
    longer = replace(layout, segments=_longer(layout, count), documents=bounds, _cache={})
    if pairs:
        longer = replace(longer, learned=_Learned(pairs, is_slot.nonzero().squeeze(1), len(bounds)))
    positions = torch.cat([torch.arange(count, device=device), position_ids + count])
    rows_TD = torch.cat([slots_KD, embeds_TD])[source]
    return PromptedRow(rows_TD, positions[source], longer, (~is_slot).nonzero().squeeze(1))


def _longer(layout: Layout, count: int) -> list[Segment]:
    segments = []
    for number, (a, b) in enumerate(layout.documents):
        start, shift = a + count * number, count * (number + 1)
        for s in (s for s in layout.segments if a <= s.start < b):
            if s.start == a:
                segments.append(Segment(start, s.end + shift))
            else:
                shared = count + s.prefix_end - s.prefix_start
                segments.append(Segment(s.start + shift, s.end + shift, start, start + shared))
    return segments


@dataclass(frozen=True)
class _Learned:
    """Keys and values of each layer, (key heads, slots, head_dim), and where they belong in a row."""

    pairs: Sequence[tuple[Tensor, Tensor]]
    slots: Tensor
    documents: int

    def __call__(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`key` and `value` (1, key heads, T, head_dim) with the learned ones in the slots."""
        k, v = (x.repeat(1, self.documents, 1)[None].to(key.dtype) for x in self.pairs[layer])
        return key.index_copy(2, self.slots, k), value.index_copy(2, self.slots, v)


def prompt_to_save(model: PeftModel, weights: dict[str, Tensor]) -> Tensor:
    """PEFT's `prompt_embeddings` (virtual tokens, width), from `weights` named as `model` names them.

    PEFT's own function would read the module, whose weights ZeRO-3 has dealt to the ranks.
    """
    config = model.peft_config["default"]
    own = {n.removeprefix(_ENCODER): t for n, t in weights.items() if n.startswith(_ENCODER)}
    if not isinstance(config, PromptEncoderConfig):
        return own["embedding.weight"]
    encoder = PromptEncoder(replace(config, inference_mode=False))
    encoder.load_state_dict(own)
    with torch.no_grad():
        embeddings: Tensor = encoder(torch.arange(config.num_virtual_tokens))
    return embeddings


class Prompted(nn.Module):
    """A model that learned a prompt, for generation: the first call puts it in, the cache keeps it."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model, self.count = model, model.active_peft_config.num_virtual_tokens

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        base: Any = self.model.get_base_model()
        dtype: torch.dtype = base.dtype
        return dtype

    def forward(self, past_key_values: Any = None, position_ids: Tensor | None = None, **inputs: Any) -> Any:
        """As the model itself is called; `position_ids` count the dialogue's own tokens."""
        if past_key_values is None:
            return self.model(**inputs)
        if position_ids is not None:
            position_ids = position_ids + self.count
        return self.model.get_base_model()(past_key_values=past_key_values, position_ids=position_ids, **inputs)
