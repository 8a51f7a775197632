"""The shipped recipes on models of their real sizes, of which only the configs are there; the counts are known ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    MistralConfig,
    PretrainedConfig,
)

from launch.cli import run as vlm
from launch.recipe import load
from shards.files import write_json
from tests.vlm.test_families import byte_tokenizer
from vlm.config import RECIPES
from vlm.data.template import TEMPLATES
from vlm.estimate.activations import build
from vlm.estimate.work import count_parameters
from vlm.model.assemble import Assembly


@dataclass(frozen=True)
class Shape:
    """A language model by its config, and the template it speaks."""

    text: Callable[[], PretrainedConfig]
    template: str


def _gemma() -> PretrainedConfig:
    return Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        tie_word_embeddings=True,
    )


VICUNA_7B = Shape(lambda: LlamaConfig(vocab_size=32000), "vicuna_v1")
VICUNA_13B = Shape(
    lambda: LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
    "vicuna_v1",
)
MISTRAL_7B = Shape(lambda: MistralConfig(sliding_window=4096), "saiga")
LLAMA3_8B = Shape(
    lambda: LlamaConfig(
        vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=8192
    ),
    "llama-3",
)
GEMMA_270M = Shape(_gemma, "gemma")


@dataclass(frozen=True)
class Known:
    """Of a recipe: its language model, its projector's weights, and what it trains beside them."""

    shape: Shape
    projector: int
    adapter: int


# a matrix of `in` by `out` takes r · (in + out); the sums of a block's seven are written out
KNOWN = {
    "llava15_7b_pretrain": Known(VICUNA_7B, 20_979_712, 0),
    "llava15_7b_lora": Known(VICUNA_7B, 20_979_712, 128 * 32 * (4 * 8192 + 3 * 15104)),
    "llava15_13b_lora": Known(VICUNA_13B, 31_467_520, 128 * 40 * (4 * 10240 + 3 * 18944)),
    "saiga_mistral_7b_ru": Known(MISTRAL_7B, 20_979_712, 128 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)),
    "vk_saiga_8b_ru": Known(LLAMA3_8B, 20_979_712, 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)),
    "vk_saiga_8b_ru_4bit": Known(LLAMA3_8B, 20_979_712, 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)),
    "gemma3_270m_demo": Known(GEMMA_270M, 492_800, 16 * 18 * (2 * 1664 + 2 * 896 + 3 * 2688)),
}


def _folder(out: Path, shape: Shape, small: bool) -> Path:
    """config.json, assembly.json, a byte tokenizer and a processor, and no weights."""
    out.mkdir(exist_ok=True)
    text = shape.text()
    # as `vlm assemble` adds <image>, and <pad> where the model has none
    added = [text.vocab_size] if small else [text.vocab_size, text.vocab_size + 1]
    text.vocab_size += len(added)
    tower: dict[str, Any] = (
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
        if small
        else {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    )
    side, patch = (64, 8) if small else (336, 14)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=side, patch_size=patch),
        text_config=text,
        image_token_index=added[0],
        pad_token_id=added[-1],
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.save_pretrained(out)
    tokens = (side // patch) ** 2
    assembly = Assembly("tower", "language", "", "", shape.template, tokens, added, 0)
    write_json(out / "assembly.json", assembly.to_json())
    tokenizer = byte_tokenizer((*TEMPLATES[shape.template].markers, "<image>", "<unk>", "</s>"))
    square = {"height": side, "width": side}
    image_processor = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": side}, crop_size=square)
    LlavaProcessor(image_processor=image_processor, tokenizer=tokenizer, patch_size=patch).save_pretrained(out)
    return out


@pytest.mark.parametrize("name", list(KNOWN))
def test_counts_are_the_known_ones(name: str, tmp_path: Path) -> None:
    known, recipe = KNOWN[name], load(name)
    folder = _folder(tmp_path, known.shape, name == "gemma3_270m_demo")
    config = AutoConfig.from_pretrained(folder)
    found = count_parameters(build(recipe, config, Assembly.read(folder)), config)
    assert found.trained == known.projector + known.adapter
    if name == "llava15_7b_pretrain":
        # LLaVA-1.5-7B as published, 7,063,427,072, has 64 rows more than Vicuna in each of its two tables; ours has 2
        assert found.total == 7_063_427_072 - 2 * 62 * 4096


def test_the_command_knows_a_model_by_its_config(
    english: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path, GEMMA_270M, True)
    command = ["estimate", "gemma3_270m_demo", f"model.base={folder}", f"data.train={english}", "--json"]
    assert vlm(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["trained"] == 492_800 + KNOWN["gemma3_270m_demo"].adapter
    # the whole of it: weights in bfloat16, and the vocabulary once
    assert found["memory"]["zero2"]["weights"] == 2 * found["parameters"]["total"] < 0.6e9


def test_every_recipe_of_a_real_model_is_known_and_names_its_source() -> None:
    real = {p.stem for p in RECIPES.glob("*.yaml") if not p.stem.startswith("demo")}
    assert real == set(KNOWN)
    assert all("# " in text and "ource" in text for text in ((RECIPES / f"{n}.yaml").read_text("utf-8") for n in real))
