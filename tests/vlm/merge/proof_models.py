"""A small language model of Mistral's form in several files, and adapters of it, written to the disk."""

from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from tests.vlm.merge.models import LINEAR, save_drawn

__all__ = ["LINEAR", "ia3", "lora", "write_adapter", "write_base"]


def write_base(folder: Path, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Two layers, 64 tokens, weights that are not small."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, tie_word_embeddings=tied, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    model.to(dtype).save_pretrained(folder, max_shard_size="40KB")
    return folder


def lora(**options: object) -> LoraConfig:
    """Of all linear layers."""
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **options})  # type: ignore[arg-type]


def ia3() -> IA3Config:
    """Of an output and an input."""
    return IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])


def write_adapter(base: Path, folder: Path, config: PeftConfig, seed: int = 0) -> Path:
    """Drawn weights: an adapter that is begun does nothing."""
    model: PreTrainedModel = MistralForCausalLM.from_pretrained(base, dtype=torch.float32)
    return save_drawn(get_peft_model(model, config), folder, seed)
