"""The estimate: counts as the real model has them, FLOPs by the formula, lengths and steps as training sees them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
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
from vlm.estimate import estimate, work_of
from vlm.estimate.activations import build
from vlm.estimate.memory import Zero, fit
from vlm.estimate.rows import MeanSample
from vlm.estimate.work import Parameters, count_parameters, flop_per_sample, recomputed_per_sample
from vlm.model.adapter import trainable
from vlm.model.assemble import Assembly
from vlm.model.load import load_model, load_tokenizer, sliding_window
from vlm.speed import Work

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
    config = AutoConfig.from_pretrained(model)
    counted = count_parameters(build(recipe, config, assembly), config)
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
    counts = count_parameters(build(recipe, config, Assembly("", "", "", "", "", 576, [], 0)), config)
    assert counts.linear["language_model"][0] == pytest.approx(6.98e9, rel=1e-3)
    assert counts.linear["language_model"][1] == pytest.approx(2.62e6 * 16, rel=1e-3)
    assert counts.linear["lm_head"] == (32000 * 4096, 0)
    # a sample of the LLaVA mix: 870 tokens in one document, 576 of them an image; all visible to what follows
    llava = MeanSample(tokens=870, supervised=250, keys=870 * 870 / 2, images=1, read=1)
    assert flop_per_sample(counts, llava, config) / 1e12 == pytest.approx(25.6, rel=0.01)
    text_only = flop_per_sample(counts, MeanSample(870, 250, 870 * 870 / 2, 0, 1), config)
    per_token = 4 * 6.98e9 + 6 * 41.9e6 + 6 * 32 * 4096 * 870 + 4 * 0.131e9 * 250 / 870
    assert text_only / 870 == pytest.approx(per_token, rel=1e-3)
    assert (flop_per_sample(counts, llava, config) - text_only) / 1e12 == pytest.approx(0.38 + 0.07, rel=0.03)
    twice = [recomputed_per_sample(counts, llava, config, every) / 1e12 for every in (0, 1, 2, 3)]
    # 38 TFLOP where every block is recomputed; 16 of 32, 11 of 32
    assert twice == pytest.approx([0, 12.42, 12.42 / 2, 12.42 * 11 / 32], rel=0.01)
    towered = Parameters(counts.total, 0, counts.linear | {"vision_tower": (0, counts.linear["vision_tower"][0])})
    assert recomputed_per_sample(towered, llava, config, 1) / 1e12 - twice[1] == pytest.approx(0.38, rel=0.03)


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
    monkeypatch.setattr("vlm.estimate.rows.SAMPLES", 5)
    found = estimate(recipe_of(model, russian), 1)
    assert found.lengths.read == 5 < found.samples == len(ShardDataset(russian))
    assert "lengths from 5 of them" in " ".join(found.lines())


@pytest.mark.parametrize("method", ["prompt", "ptuning", "prefix"])
def test_virtual_tokens_count(method: str, model: Path, russian: Path) -> None:
    overrides = (f"adapter.method={method}", "data.turns=joint")
    few, more = (
        estimate(recipe_of(model, russian, *overrides, f"adapter.virtual_tokens={count}"), 1) for count in (5, 9)
    )
    assert more.lengths.tokens - few.lengths.tokens == pytest.approx(4)
    # the documents are longer than the window: every token more sees a window of keys
    assert more.lengths.keys - few.lengths.keys == pytest.approx(4 * (sliding_window(model) or 0))
    assert more.tflop_per_sample > few.tflop_per_sample
    assert more.memory["zero2"].activations > few.memory["zero2"].activations


def test_memory_by_stage(model: Path, russian: Path) -> None:
    recipe = recipe_of(model, russian, "model.dtype=bfloat16", "engine.deepspeed=zero3")
    one, four = estimate(recipe, 1), estimate(recipe, 4)
    total, trained = one.parameters.total, one.parameters.trained
    assert set(one.memory) == {"zero2", "zero3", "zero3_offload"}
    for name in ("zero2", "zero3"):
        whole = one.memory[name]
        assert (whole.weights, whole.gradients, whole.optimizer) == (2 * total, 2 * trained, 12 * trained)
        assert whole.total == 2 * total + 14 * trained + whole.activations + whole.buffers
        assert four.memory[name].gradients == trained // 4 * 2 and four.memory[name].optimizer == trained // 4 * 12
    assert four.memory["zero2"].weights == 2 * total and four.memory["zero3"].weights == total // 2
    # two buckets of 200 million elements beside the backward pass
    assert 0.95 * 8e8 < one.memory["zero2"].buffers <= 8e8
    # one bucket, what is laid out of it, and all weights gathered
    assert four.memory["zero3"].buffers == pytest.approx(4e8 + 2 * trained + 2 * total, rel=0.02)
    quantised = estimate(recipe_of(model, russian, "model.dtype=bfloat16", "adapter.method=qlora"), 1)
    small = quantised.parameters.linear["language_model"][0]
    assert quantised.memory["zero2"].weights == pytest.approx(2 * (total - small) + 0.516 * small, rel=1e-3)
    offloaded = four.memory["zero3_offload"]
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer, offloaded.step) == (0, 0, 0, 0)


def test_largest_micro_batch(model: Path, russian: Path) -> None:
    fitting = recipe_of(model, russian, "data.micro_batch_tokens=512")
    found = estimate(fitting, 1, gpu_gib=1.75).memory["zero2"]
    assert found.total < 1.75 * 2**30 and found.micro_batch_tokens > 1024
    # with just that many tokens in a row the same GPU is full
    tokens = found.micro_batch_tokens
    full = estimate(recipe_of(model, russian, f"data.micro_batch_tokens={tokens}", "data.batch_size=2000"), 1)
    assert full.row_tokens > 0.95 * tokens
    assert full.memory["zero2"].total == pytest.approx(1.75 * 2**30, rel=0.05)
    assert estimate(fitting, 1, gpu_gib=0.5).memory["zero2"].micro_batch_tokens == 0
    assert [fit([(100, 10), (1000, 100), (4000, 400)], room) for room in (9, 10, 55, 800)] == [0, 100, 512, 7936]


def test_optimizer_step_can_be_the_peak() -> None:
    parameters = Parameters(1000, 1000, {"language_model": (0, 1000)}, (400, 600))
    zero = Zero({"stage": 2, "reduce_bucket_size": 10}, parameters, 1, 2, False)
    assert (zero.gradients(), zero.optimizer(), zero.step()) == (2000, 12000, 8000)
    assert replace(zero, item=4).step() == 8 * 600
    # the sum of the micro-batches before lies beside the last one's, but in ZeRO-3
    several = replace(zero, micro_batches=2)
    assert (several.gradients(), replace(several, zero={"stage": 3}).gradients()) == (4000, 2000)


def test_recomputed_work_is_told_to_training(model: Path, russian: Path) -> None:
    plain, all_blocks = (work_of(recipe_of(model, russian, f"model.checkpoint_blocks={every}")) for every in (0, 1))
    assert plain[1] == 0 < all_blocks[1] < plain[0] == all_blocks[0]
    used = Work(*all_blocks, peak=100.0).utilisation(16, 1.0, 1)
    assert used["hfu"] > used["mfu"] > 0
    checkpointed = recipe_of(model, russian, "model.checkpoint_blocks=1")
    found = estimate(checkpointed, 1)
    assert found.seconds_per_step * found.tflops == pytest.approx(16 * sum(all_blocks))
    assert found.hours == found.gpu_hours


def peaks(cases: Sequence[Sequence[str]], **environment: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "tests.vlm.peaks", json.dumps(cases)]
    shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")]


PEAKS = [
    ("adapter.method=lora",),
    ("adapter.method=lora", "model.dtype=bfloat16"),
    ("adapter.method=lora", "model.checkpoint_blocks=1"),
    ("adapter.method=lora", "model.checkpoint_blocks=2", "model.dtype=bfloat16"),
    ("adapter.method=full",),
    ("adapter.method=projector", "model.dtype=bfloat16"),
    ("adapter.method=projector", "stage=3"),
]


def test_memory_is_within_a_tenth_of_the_measured_peak() -> None:
    for case, found in zip(PEAKS, peaks(PEAKS, CUDA_VISIBLE_DEVICES=""), strict=True):
        assert found["total"] == pytest.approx(found["measured"], rel=0.1), (case, found)
        # a figure made of weights and optimizer alone would prove little
        assert found["activations"] > 0.3 * found["total"], (case, found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_is_within_a_tenth_of_the_measured_peak_on_a_gpu() -> None:
    cases = [[*case, "model.dtype=bfloat16"] for case in PEAKS if "model.dtype=bfloat16" not in case]
    cases.append(["adapter.method=qlora", "model.dtype=bfloat16"])
    for case, found in zip(cases, peaks(cases), strict=True):
        assert found["total"] == pytest.approx(found["measured"], rel=0.1), (case, found)


def test_command(model: Path, russian: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "demo", f"model.base={model}", f"data.train={russian}"]
    assert vlm([*command, "cluster.gpus_per_node=4", "cluster.nodes=2", "--tflops", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ranks"], found["tflops"], found["deepspeed"]) == (8, 100, "zero2")
    assert vlm(command) == 0
    shown = capsys.readouterr().out
    assert "assuming    124.8 TFLOP/s sustained a GPU (40 % of an A100's 312)" in shown and "<- this recipe" in shown
    assert "a GPU of 80 GiB: at most data.micro_batch_tokens=" in shown and "GPU hours" in shown
    assert vlm([*command, "--memory", "0.1"]) == 0
    assert "a GPU of 0.1 GiB: does not fit" in capsys.readouterr().out
    for changed, message in (
        (["--tflops", "0"], "--tflops"),
        (["--memory", "0"], "--memory"),
        (["data.train=''"], "data.train"),
        (["model.base=x"], "x"),
    ):
        assert vlm([*command, *changed]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"model\.base"):
        estimate(recipe_of(Path("nowhere"), russian), 1)
