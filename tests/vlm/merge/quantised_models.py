"""Small language models in bitsandbytes' 4 bits and in GGUF files, written to the disk."""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.vlm.merge.models import lora, save_drawn

HIDDEN, WIDTH, LAYERS, HEADS, KEYS = 64, 128, 2, 4, 2
MARKERS = ["<s>", "</s>"]
TOKENS = [*MARKERS, *bytes_to_unicode().values(), "Ġt"]
Weights = dict[str, torch.Tensor]


def write_plain(folder: Path) -> Path:
    """A Llama in bfloat16, whose rows are whole blocks of NF4: bitsandbytes' AVX-512 kernel mistakes others."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, tie_word_embeddings=False, attention_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_four_bit(plain: Path, folder: Path, shard: str = "5GB", **options: Any) -> Weights:
    """`plain` as transformers and bitsandbytes write it in 4 bits; what bitsandbytes makes of that again."""
    import bitsandbytes

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **options)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shard)
    return _dequantised(model, bitsandbytes)


def _dequantised(model: nn.Module, bitsandbytes: Any) -> Weights:
    found = {name: value for name, value in model.state_dict().items() if ".weight." not in name}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            found[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return found


def write_gguf(path: Path, architecture: str = "llama", tokens: bool = True) -> Path:
    """Of random weights, as llama.cpp names its parts, in several quantisations."""
    import gguf

    generator = torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_license("mit")
    head = HIDDEN // HEADS
    writer.add_vocab_size(len(TOKENS))
    if architecture == "llama":
        writer.add_rope_dimension_count(head)
    else:
        writer.add_key_length(head)
        writer.add_sliding_window(8)
    if tokens:
        add_tokens(writer, gguf)
    f16, q4, q8 = (gguf.GGMLQuantizationType[name] for name in ("F16", "Q4_0", "Q8_0"))
    keys, up, down = (head * KEYS, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)
    block: dict[str, tuple[tuple[int, ...], Any]] = {
        "attn_q": ((HIDDEN, HIDDEN), q4), "attn_k": (keys, q8), "attn_v": (keys, f16), "attn_norm": ((HIDDEN,), None),
        "attn_output": ((HIDDEN, HIDDEN), q4), "ffn_gate": (up, q4), "ffn_up": (up, gguf.GGMLQuantizationType.BF16),
        "ffn_down": (down, q8), "ffn_norm": ((HIDDEN,), None),
    }  # fmt: skip
    if architecture == "gemma3":
        more = {"attn_q_norm": head, "attn_k_norm": head, "post_attention_norm": HIDDEN, "post_ffw_norm": HIDDEN}
        block |= {name: ((length,), None) for name, length in more.items()}
    tensors = {f"blk.{i}.{name}.weight": each for i in range(LAYERS) for name, each in block.items()}
    tensors |= {"token_embd.weight": ((len(TOKENS), HIDDEN), q8), "output_norm.weight": ((HIDDEN,), None)}
    if architecture == "llama":
        tensors["output.weight"] = ((len(TOKENS), HIDDEN), f16)
    for name, (shape, kind) in tensors.items():
        values = (0.2 * torch.randn(shape, generator=generator)).numpy()
        writer.add_tensor(name, values if kind is None else gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokens(writer: Any, gguf: Any) -> None:
    """A tokenizer of single bytes, and one merge."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(TOKENS)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if token in MARKERS else normal for token in TOKENS])
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def write_adapter(model: nn.Module, folder: Path) -> Path:
    """A LoRA of all linear layers, of drawn weights."""
    return save_drawn(get_peft_model(model, lora()), folder, 1)
