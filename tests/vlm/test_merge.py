"""Merging: equal logits, a plain Hugging Face folder, damage and misfits refused."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from launch.recipe import PipelineRecipe, load
from shards.errors import BadInput
from shards.files import verify_manifest, write_json, write_manifest
from vlm import merge as merge_module
from vlm.checkpoint import State
from vlm.data.images import Pixels
from vlm.merge import merge, standing
from vlm.model.adapter import AdapterConfig, save_adapter, trainable
from vlm.model.assemble import Assembly
from vlm.model.load import load_model
from vlm.model.packed import PackedLlava


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose one checkpoint holds an adapter of random, not small, weights."""
    torch.manual_seed(0)
    packed = PackedLlava(
        trainable(load_model(model, "float32", packed=True), AdapterConfig(r=4), Assembly.read(model)), Pixels.of(model)
    )
    weights = {n: p + 0.05 * torch.randn_like(p) for n, p in packed.named_parameters() if p.requires_grad}
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    save_adapter(packed, {n: w.detach() for n, w in weights.items()}, folder)
    write_manifest(folder)
    return folder.parent.parent


def _recipe(model: Path, russian: Path, run: Path) -> PipelineRecipe:
    return load("demo", [f"run={run}", f"model.base={model}", f"eval.data={russian}", "eval.adapter=latest"])


def test_merged_folder_is_plain_and_equal(model: Path, russian: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    recipe = _recipe(model, russian, run)
    assert not standing(recipe, out)
    proof = merge(recipe, out)
    assert proof.max_difference <= 1e-5 and standing(recipe, out) and not verify_manifest(out)
    base = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run / "checkpoints" / "step-00000001" / "adapter").eval()
    merged = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    ids = AutoProcessor.from_pretrained(out).tokenizer("есть ли круг?", return_tensors="pt").input_ids
    with torch.inference_mode():
        before = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)(input_ids=ids).logits
        expected, found = adapted(input_ids=ids).logits, merged(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 0.1


def test_a_merge_that_differs_never_looks_whole(
    model: Path, russian: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = merge_module._logits
    calls: list[int] = []

    def drifting(packed: PackedLlava, rows: list[object]) -> list[torch.Tensor]:
        calls.append(1)
        return [x + (len(calls) - 1) * 1e-3 for x in honest(packed, rows)]

    monkeypatch.setattr(merge_module, "_logits", drifting)
    with pytest.raises(RuntimeError, match="merged logits differ"):
        merge(_recipe(model, russian, run), tmp_path / "merged")
    assert not (tmp_path / "merged" / "MANIFEST.json").exists()


def test_damage_is_refused_by_name(model: Path, russian: Path, run: Path, tmp_path: Path) -> None:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)

    base = tmp_path / "base"
    shutil.copytree(model, base)
    flip(base / "model.safetensors")
    with pytest.raises(BadInput, match=r"model.base: .*damaged: model.safetensors: digest"):
        merge(_recipe(base, russian, run), tmp_path / "merged")
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    adapter = damaged / "checkpoints" / "step-00000001" / "adapter"
    flip(adapter / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="no checkpoint that verifies"):
        merge(_recipe(model, russian, damaged), tmp_path / "merged")
    recipe = _recipe(model, russian, damaged)
    recipe.eval.adapter = str(adapter)
    with pytest.raises(BadInput, match=r"damaged: adapter/adapter_model.safetensors"):
        merge(recipe, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_misfits_are_refused(model: Path, russian: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run / "checkpoints" / "step-00000001" / "adapter", folder)
    recipe = _recipe(model, russian, run)
    recipe.eval.adapter = str(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    # PEFT alone would warn, load the rest, and the proof would hold for a model without the adapter
    save_file(
        {n.replace("layers.0.", "blocks.0."): t for n, t in weights.items()}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(BadInput, match=r"weights do not fit the base, first .*(layers|blocks)"):
        merge(recipe, tmp_path / "merged")
    save_file({n: t[:2] for n, t in weights.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="does not fit the base"):
        merge(recipe, tmp_path / "merged")
    (folder / "adapter_config.json").write_text('{"peft_type": "XLORA"}')
    with pytest.raises(BadInput, match="not a LoRA adapter"):
        merge(recipe, tmp_path / "merged")
    recipe.eval.adapter = str(tmp_path)
    with pytest.raises(BadInput, match="holds no adapter_model"):
        merge(recipe, tmp_path / "merged")


def test_adapter_of_another_base_is_refused(model: Path, russian: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    folder = other / "checkpoints" / "step-00000001"
    write_json(folder / "state.json", asdict(State(1, "plan", "another base's digest", 0, 1)))
    write_manifest(folder)
    with pytest.raises(BadInput, match=r"was trained on another model.base"):
        merge(_recipe(model, russian, other), tmp_path / "merged")


def test_output_folder_of_somebody_else_is_left_alone(model: Path, russian: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match="holds something else"):
        merge(_recipe(model, russian, run), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    base = tmp_path / "base"
    shutil.copytree(model, base)
    with pytest.raises(BadInput, match="is the base or a checkpoint"):
        merge(_recipe(base, russian, run), base)
    assert not verify_manifest(base)
