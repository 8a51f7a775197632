"""What is trained: everything, the projector alone, or LoRA with projector and new token embeddings."""

from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import LlavaForConditionalGeneration

from shards.errors import BadInput
from shards.files import read_json
from vlm.model.assemble import Assembly

PROJECTOR = "multi_modal_projector"
NEW_TOKENS = "trainable_tokens_delta"
LINEAR = "(q|k|v|o|gate|up|down)_proj"


@dataclass(kw_only=True)
class AdapterConfig:
    """Section `adapter` of a recipe."""

    method: str = "lora"
    """lora, projector (LLaVA's first stage) or full."""
    r: int = 16
    """Rank of the LoRA matrices."""
    alpha: int = 32
    """LoRA's scale is alpha / r."""
    dropout: float = 0.0
    """Dropout before the LoRA matrices."""
    targets: list[str] = field(default_factory=list)
    """Linear layers of the language model to adapt, by their last name; empty for all of them."""
    projector: bool = True
    """Train the projector together with LoRA."""
    new_tokens: bool = True
    """Train the embeddings of tokens that `vlm assemble` added."""
    align_tokens: bool = True
    """Start added tokens at the embeddings of the tokens they translate, where the training set keeps its originals."""
    tower: bool = False
    """Train the vision tower too (method full only)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"adapter.method: {self.method!r} is not one of {', '.join(METHODS)}")
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise BadInput(f"adapter.r={self.r} must be at least 1, adapter.dropout={self.dropout} in [0, 1)")


def trainable(model: LlavaForConditionalGeneration, config: AdapterConfig, assembly: Assembly) -> nn.Module:
    """Freeze and wrap `model` as the recipe says; returns the module to train."""
    model.requires_grad_(False)
    return METHODS[config.method](model, config, assembly)


def _lora(model: LlavaForConditionalGeneration, config: AdapterConfig, assembly: Assembly) -> nn.Module:
    names = f"({'|'.join(config.targets)})" if config.targets else LINEAR
    new = assembly.new_token_ids if config.new_tokens else []
    # PEFT lets a tied head follow the embeddings by itself
    layers = ("embed_tokens",) if model.config.tie_word_embeddings else ("embed_tokens", "lm_head")
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf".*language_model\..*\.{names}",
        modules_to_save=[PROJECTOR] if config.projector else None,
        trainable_token_indices=dict.fromkeys(layers, new) if new else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def _projector(model: LlavaForConditionalGeneration, config: AdapterConfig, assembly: Assembly) -> nn.Module:
    model.model.multi_modal_projector.requires_grad_(True)
    return model


def _full(model: LlavaForConditionalGeneration, config: AdapterConfig, assembly: Assembly) -> nn.Module:
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(config.tower)
    return model


METHODS = {"lora": _lora, "projector": _projector, "full": _full}


def load_adapter(model: LlavaForConditionalGeneration, folder: Path) -> PeftModel:
    """PEFT's own loading, of a LoRA adapter in safetensors form only.

    Raises BadInput when it is something else, or where its weights and the base's layers do not match one to one:
    PEFT itself would load what fits and warn.
    """
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        raise BadInput(f"{folder} holds no adapter_model.safetensors; give a checkpoint's adapter folder")
    config = read_json(folder / "adapter_config.json", max_bytes=2**20)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise BadInput(f"{folder}/adapter_config.json: not a LoRA adapter")
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(f"{folder}: does not fit the base ({str(error).splitlines()[0]})") from error
    with safe_open(weights, "pt") as saved:
        odd = set(saved.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if odd:
        raise BadInput(f"{folder}: weights do not fit the base, first {min(odd)}")
    return adapted
