"""The estimate: counts as the real model has them, FLOPs by the formula, lengths and steps as training sees them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig, MistralConfig

from launch.cli import run as vlm
from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm.config import Recipe, load_recipe
from vlm.data.batch import pack
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.loader import Source
from vlm.data.template import load_template
from vlm.estimate import Lengths, count_parameters, estimate, flop_per_sample
from vlm.model.adapter import trainable
from vlm.model.assemble import Assembly
from vlm.model.load import load_model, load_tokenizer, sliding_window

METHODS = [
    ("lora", ()),
    ("lora", ("adapter.r=4", "adapter.projector=false", "adapter.new_tokens=false", "adapter.targets=[q_proj,v_proj]")),
    ("projector", ()),
    ("full", ()),
    ("full", ("adapter.tower=true",)),
    ("qlora", ("adapter.dora=true",)),
    *((name, ()) for name in ("tokens", "ia3", "bottleneck", "prompt", "ptuning", "prefix")),
]


def recipe_of(model: Path, data: Path, *overrides: str) -> Recipe:
    return load_recipe(Recipe, "demo", [f"model.base={model}", f"data.train={data}", *overrides])


@pytest.mark.parametrize(("method", "overrides"), METHODS)
def test_counts_are_those_of_the_real_model(method: str, overrides: Sequence[str], model: Path, russian: Path) -> None:
    recipe = recipe_of(model, russian, f"adapter.method={method}", *overrides)
    assembly = Assembly.read(model)
    counted = count_parameters(recipe, AutoConfig.from_pretrained(model), assembly)
    real = trainable(load_model(model, "float32", packed=True), recipe.adapter, assembly)
    # bitsandbytes keeps two weights in a byte
    sizes = [(p.numel() * (2 if p.dtype == torch.uint8 else 1), p.requires_grad) for p in real.parameters()]
    assert counted.total == sum(n for n, _ in sizes)
    assert counted.trained == sum(n for n, learns in sizes if learns)
    adapters = sum(p.numel() for n, p in real.named_parameters() if "lora_" in n)
    if method == "lora":
        assert counted.linear["language_model"][1] == adapters > 0


def test_mistral_7b_has_the_known_counts_and_flops() -> None:
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    config = LlavaConfig(vision_config=tower, text_config=MistralConfig(), image_token_index=31999)
    recipe = load_recipe(Recipe, "demo", ["adapter.r=16", "adapter.new_tokens=false"])
    counts = count_parameters(recipe, config, Assembly("", "", "", "", "", 576, [], 0))
    assert counts.linear["language_model"][0] == pytest.approx(6.98e9, rel=1e-3)
    assert counts.linear["language_model"][1] == pytest.approx(2.62e6 * 16, rel=1e-3)
    assert counts.linear["lm_head"] == (32000 * 4096, 0)
    # a sample of the LLaVA mix: 870 tokens in one document, 576 of them an image; all visible to what follows
    llava = Lengths(tokens=870, supervised=250, keys=870 * 870 / 2, images=1, read=1)
    assert flop_per_sample(counts, llava, config) / 1e12 == pytest.approx(25.6, rel=0.01)
    text_only = flop_per_sample(counts, Lengths(870, 250, 870 * 870 / 2, 0, 1), config)
    per_token = 4 * 6.98e9 + 6 * 41.9e6 + 6 * 32 * 4096 * 870 + 4 * 0.131e9 * 250 / 870
    assert text_only / 870 == pytest.approx(per_token, rel=1e-3)
    assert (flop_per_sample(counts, llava, config) - text_only) / 1e12 == pytest.approx(0.38 + 0.07, rel=0.03)


@pytest.mark.parametrize("turns", ["joint", "separate"])
def test_lengths_and_steps_are_those_of_training(turns: str, model: Path, russian: Path) -> None:
    recipe = recipe_of(model, russian, f"data.turns={turns}", "data.batch_size=10", "optim.epochs=2")
    found = estimate(recipe, 2)
    assembly, window = Assembly.read(model), sliding_window(model)
    template = load_template(assembly.template)
    tokeniser = Tokeniser(load_tokenizer(model), template, assembly.image_tokens, turns, recipe.data.max_length)
    pixels = Pixels.of(model)
    source = Source(recipe.data, tokeniser, pixels, 0)
    documents = [source.document(i) for i in range(len(source))]
    assert found.lengths.tokens * 24 == pytest.approx(sum(map(len, documents)))
    assert found.lengths.supervised * 24 == pytest.approx(sum(d.supervised for d in documents))
    assert (found.lengths.read, found.lengths.images, found.steps) == (24, 1, 5)
    keys = 0
    for document in documents:
        (mask,) = pack([document], [], pixels.size).layout.masks(torch.device("cpu"), window)
        keys += len(document) * (len(document) + 1) // 2 if mask is None else int(mask.sum())
    assert found.lengths.keys * 24 == pytest.approx(keys)
    # 48 samples in 5 steps
    assert found.hours * 3600 * 2 * found.tflops == pytest.approx(48 * found.tflop_per_sample)


def test_long_datasets_are_sampled(model: Path, russian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.estimate._SAMPLES", 5)
    found = estimate(recipe_of(model, russian), 1)
    assert found.lengths.read == 5 < found.samples == len(ShardDataset(russian))
    assert "lengths from 5 of them" in " ".join(found.lines())


def test_memory_by_stage(model: Path, russian: Path) -> None:
    recipe = recipe_of(model, russian, "model.dtype=bfloat16", "engine.deepspeed=zero3")
    one, four = estimate(recipe, 1), estimate(recipe, 4)
    total, trained = one.parameters.total, one.parameters.trained
    assert set(one.memory) == {"zero2", "zero3", "zero3_offload"}
    for name in ("zero2", "zero3"):
        whole = one.memory[name]
        assert (whole.weights, whole.gradients, whole.optimizer) == (2 * total, 2 * trained, 12 * trained)
        assert whole.total == 2 * total + 14 * trained
        assert (four.memory[name].gradients, four.memory[name].optimizer) == (trained // 2, 3 * trained)
    assert four.memory["zero2"].weights == 2 * total and four.memory["zero3"].weights == total // 2
    quantised = estimate(recipe_of(model, russian, "model.dtype=bfloat16", "adapter.method=qlora"), 1)
    small = quantised.parameters.linear["language_model"][0]
    assert quantised.memory["zero2"].weights == pytest.approx(2 * (total - small) + 0.516 * small, rel=1e-3)
    offloaded = four.memory["zero3_offload"]
    assert (offloaded.weights, offloaded.optimizer, offloaded.total) == (0, 0, trained // 2)


def test_command(model: Path, russian: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "demo", f"model.base={model}", f"data.train={russian}"]
    assert vlm([*command, "cluster.gpus_per_node=4", "cluster.nodes=2", "--tflops", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ranks"], found["tflops"], found["deepspeed"]) == (8, 100, "zero2")
    assert vlm(command) == 0
    shown = capsys.readouterr().out
    assert "assuming    124.8 TFLOP/s sustained a GPU (40 % of an A100's 312)" in shown and "<- this recipe" in shown
    for changed, message in (
        (["--tflops", "0"], "--tflops"),
        (["data.train=''"], "data.train"),
        (["model.base=x"], "x"),
    ):
        assert vlm([*command, *changed]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"model\.base"):
        estimate(recipe_of(Path("nowhere"), russian), 1)
