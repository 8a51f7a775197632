"""A small language model and adapters of every kind, on the disk, and what PEFT makes of them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from shards.files import read_json
from vlm.merge.adapter import Adapter, Edits
from vlm.merge.layout import INDEX, Layout
from vlm.merge.stream import Source, rewrite

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Weights = dict[str, torch.Tensor]


def base(folder: Path, tied: bool = False, shard: str = "5GB", dtype: torch.dtype = torch.bfloat16) -> Path:
    """Two layers of width 32, 72 tokens, attention with biases; weights that are not small."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=72, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def lora(**options: Any) -> LoraConfig:
    """Of all linear layers, scale 6/4."""
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LINEAR, **options})


def ia3() -> IA3Config:
    """Of outputs with and without a bias, and of inputs."""
    return IA3Config(target_modules=["q_proj", "k_proj", "up_proj", "down_proj"], feedforward_modules=["down_proj"])


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder."""
    llava = read_json(folder / "config.json")["model_type"] == "llava"
    return (LlavaForConditionalGeneration if llava else AutoModelForCausalLM).from_pretrained(folder, dtype=dtype)


def train(model: Path, config: PeftConfig, folder: Path, seed: int = 0) -> Path:
    """An adapter of drawn weights: one that is begun does nothing."""
    return save_drawn(get_peft_model(load(model), config), folder, seed)


def save_drawn(adapted: PeftModel, folder: Path, seed: int) -> Path:
    """Its adapter into `folder`, moved by drawn numbers."""
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(str(folder))
    return folder


def rewrite_adapter(
    adapter: Path, folder: Path, tensors: Mapping[str, torch.Tensor | None] | None = None, **config: Any
) -> Path:
    """A copy with other tensors (None: without it) and other keys of its configuration."""
    shutil.copytree(adapter, folder)
    found = {**load_file(adapter / ADAPTER), **(tensors or {})}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, folder / ADAPTER)
    (folder / CONFIG).write_text(json.dumps({**read_json(adapter / CONFIG), **config}))
    return folder


def names(adapter: Path, end: str) -> list[str]:
    """Of its tensors those that end so."""
    return sorted(name for name in load_file(adapter / ADAPTER) if name.endswith(end))


def edits(model: Path, adapter: Path) -> Edits:
    """An adapter's changes, checked."""
    layout, found = Layout.read(model), Adapter.read(adapter)
    found.check(layout)
    return Edits(layout, found)


def written(source: Source, layout: Layout, out: Path, dtype: torch.dtype | None = torch.float32) -> Path:
    """The weights streamed into `out`, with what is needed to load them."""
    out.mkdir()
    for file in layout.files:
        rewrite(file, out / file.path.name, source, dtype)
    for name in ("config.json", INDEX):
        if (layout.folder / name).exists():
            shutil.copyfile(layout.folder / name, out / name)
    return out


def merged(model: Path, adapter: Path, out: Path, dtype: torch.dtype = torch.float32) -> Weights:
    """Our merge, as transformers loads it."""
    source = edits(model, adapter)
    return load(written(source, source.layout, out, dtype), dtype).state_dict()  # type: ignore[no-any-return]


def peft_merged(model: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Weights:
    """PEFT's merge, in memory."""
    return PeftModel.from_pretrained(load(model, dtype), adapter).merge_and_unload().state_dict()


def one_rounding(found: Weights, exact: Weights, dtype: torch.dtype, noise: float = 1e-7) -> None:
    """`found` is `exact` rounded to `dtype`; exact values are known to twice `noise` of a tensor's largest.

    Where they are of a 16-bit dtype themselves the two are one step of it apart at most.
    """
    assert found.keys() == exact.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype, name
        if exact[name].dtype == dtype != torch.float32:
            step = torch.finfo(dtype).eps * exact[name].float().abs()
            assert ((tensor.float() - exact[name].float()).abs() <= step + 1e-7).all(), name
            continue
        value = exact[name].double()
        reach = 2 * noise * value.abs().max()
        low, high = (value - reach).to(dtype), (value + reach).to(dtype)
        assert ((low <= tensor) & (tensor <= high)).all(), name
