"""Merging through the command: a plain Hugging Face folder, proven equal; damage and misfits refused, nothing left."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from launch.cli import run as command
from launch.recipe import load
from shards.files import verify_manifest, write_json, write_manifest
from vlm.checkpoint import State
from vlm.data.images import Pixels
from vlm.merge.run import standing
from vlm.model.adapter import AdapterConfig, save_adapter, trainable
from vlm.model.assemble import Assembly, weights_digest
from vlm.model.load import load_model
from vlm.model.packed import PackedLlava

STEP = Path("checkpoints") / "step-00000001"


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose one checkpoint holds an adapter of random, not small, weights."""
    torch.manual_seed(0)
    packed = PackedLlava(
        trainable(load_model(model, "float32", packed=True), AdapterConfig(r=4), Assembly.read(model)), Pixels.of(model)
    )
    weights = {n: p + 0.05 * torch.randn_like(p) for n, p in packed.named_parameters() if p.requires_grad}
    folder = tmp_path_factory.mktemp("run") / STEP
    folder.mkdir(parents=True)
    save_adapter(packed, {n: w.detach() for n, w in weights.items()}, folder)
    write_json(folder / "state.json", asdict(State(1, "plan", weights_digest(model), 0, 1)))
    write_manifest(folder)
    return folder.parent.parent


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Merge into tmp_path/merged, which must end with code 2, one line and nothing at its place; the line."""

    def merge(*arguments: object, code: int = 2) -> str:
        out = tmp_path / "merged"
        assert command(["merge", *map(str, arguments), "--out", str(out)]) == code
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1 and not out.exists(), said
        return said

    return merge


def test_merged_folder_is_plain_and_equal(
    model: Path, russian: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    given = [f"run={run}", f"model.base={model}", f"eval.data={russian}", "eval.adapter=latest"]
    recipe = load("demo", given)
    assert not standing(recipe, out)
    assert command(["merge", "demo", *given, "--out", str(out), "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["max_difference"] <= 1e-5 and proof["probes"] == proof["answers"] == proof["same_answers"] == 4
    assert standing(recipe, out) and not verify_manifest(out)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    base = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run / STEP / "adapter").eval()
    merged = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    ids = AutoProcessor.from_pretrained(out).tokenizer("есть ли круг?", return_tensors="pt").input_ids
    with torch.inference_mode():
        before = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)(input_ids=ids).logits
        expected, found = adapted(input_ids=ids).logits, merged(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 0.1
    # of another dtype, or another adapter, it would be made again
    assert not standing(load("demo", [*given, "model.dtype=bfloat16"]), out)
    flip(out / "model.safetensors")
    assert not standing(recipe, out)


def test_folders_are_merged_as_a_recipe_is(
    model: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    named = ["merge", str(run), "--base", str(model), "--dtype", "bfloat16"]
    assert command([*named, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 1e-5 < told["max_difference"] < told["tolerance"] == 4e-2 and told["folder"] == str(out)
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(out / "model.safetensors").values())
    assert json.loads((out / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"
    # the same folder, from elsewhere
    before = (out / "MANIFEST.json").read_bytes()
    assert command([*named, "--verify-only", str(out)]) == 0
    assert "logits agree" in capsys.readouterr().out and (out / "MANIFEST.json").read_bytes() == before
    weights = load_file(out / "model.safetensors")
    weights["language_model.model.layers.1.mlp.up_proj.weight"][5:9] *= 2
    save_file(weights, out / "model.safetensors")
    write_manifest(out)
    assert command([*named, "--verify-only", str(out)]) == 1
    assert "layers.1.mlp.up_proj.weight: row 6 is off by" in capsys.readouterr().err


def test_damage_is_refused_by_name(model: Path, run: Path, tmp_path: Path, refused: Refused) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        base = tmp_path / name / "base"
        shutil.copytree(model, base)
        flip(base / name)
        assert f"base/{name}: damaged" in refused(run, "--base", base)
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    adapter = damaged / STEP / "adapter"
    flip(adapter / "adapter_model.safetensors")
    assert "no checkpoint that verifies" in refused(damaged, "--base", model)
    assert "adapter/adapter_model.safetensors: damaged" in refused(adapter, "--base", model)
    recipe = ["demo", f"run={damaged}", f"model.base={model}"]
    assert "no checkpoint that verifies" in refused(*recipe, "eval.adapter=latest")
    assert "adapter/adapter_model.safetensors: damaged" in refused(*recipe, f"eval.adapter={adapter}")


def test_misfits_are_refused(model: Path, run: Path, tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run / STEP / "adapter", folder)
    weights = load_file(folder / "adapter_model.safetensors")
    # PEFT alone would warn, load the rest, and the proof would hold for a model without the adapter
    renamed = {n.replace("layers.0.", "blocks.0."): t for n, t in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    assert "blocks.0." in refused(folder, "--base", model)
    save_file({n: t[:2].clone() for n, t in weights.items()}, folder / "adapter_model.safetensors")
    assert "does not fit" in refused(folder, "--base", model)
    (folder / "adapter_config.json").write_text('{"peft_type": "XLORA"}')
    assert "XLORA cannot be merged" in refused(folder, "--base", model)
    assert "holds no adapter_model" in refused(model, "--base", model)
    assert "no model folder" in refused(run, "--base", tmp_path / "none")
    assert "eval.adapter: empty" in refused("demo", f"run={run}", f"model.base={model}")
    assert "name its base with --base" in refused(run)
    assert "--weights x: numbers" in refused(run, "--base", model, "--weights", "x")
    assert "2 weights for 1 adapters" in refused(run, "--base", model, "--weights", "0.5,0.5")
    assert "--density, --sign, --rank and --seed go with --combine" in refused(
        run, "--base", model, "--sign", "frequency"
    )
    assert "go with --base" in refused("demo", "--dtype", "bfloat16")
    other = tmp_path / "run"
    shutil.copytree(run, other)
    write_json(other / STEP / "state.json", asdict(State(1, "plan", "another base's digest", 0, 1)))
    write_manifest(other / STEP)
    assert "was trained on another base" in refused(other, "--base", model)
    recipe = [f"run={other}", f"model.base={model}", "eval.adapter=latest"]
    assert "was trained on another model.base" in refused("demo", *recipe)


def test_output_folder_of_somebody_else_is_left_alone(
    model: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    base = tmp_path / "base"
    shutil.copytree(model, base)
    another = tmp_path / "another"
    shutil.copytree(model, another)
    cases = {
        tmp_path: "holds something else",
        base: "is, holds or lies in",
        run / STEP: "is, holds or lies in",
        another: "holds a model that was not merged",
    }
    for out, said in cases.items():
        assert command(["merge", str(run), "--base", str(base), "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    assert not verify_manifest(base) and not verify_manifest(another) and not verify_manifest(run / STEP)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "base", "thesis.tex"]
