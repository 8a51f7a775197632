"""A linear projector stays one matrix: trained, resumed, merged or exported, and folded where two are given."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from launch.recipe import PipelineRecipe, load
from tests.vlm.forked import run_ranks
from tests.vlm.merge.by_recipe import merge_recipe
from tests.vlm.test_families import write_language, write_tower
from vlm import checkpoint
from vlm.export import export
from vlm.model.adapter import METHODS, AdapterConfig, trainable
from vlm.model.assemble import Assembly, assemble
from vlm.model.load import load_model

HIDDEN, PATCH = 36, 36


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear")
    tower, language = write_tower("clip", folder / "tower"), write_language("llama-2", folder / "language")
    new = {"new_language_texts": ["синий круг, красный квадрат"], "new_tokens": 4}
    assemble(tower, language, folder / "model", template="vicuna_v1", projector="linear", **new)
    return folder


def _layers(folder: Path) -> dict[str, Tensor]:
    """What plain transformers loads."""
    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    layers: dict[str, Tensor] = model.model.multi_modal_projector.state_dict()
    return layers


def _is_identity(layers: dict[str, Tensor]) -> bool:
    return torch.equal(layers["linear_2.weight"], torch.eye(HIDDEN)) and not layers["linear_2.bias"].any()


@pytest.mark.parametrize("method", METHODS)
def test_no_method_trains_the_second_matrix(method: str, parts: Path) -> None:
    model = load_model(parts / "model", "float32", packed=True)
    config = AdapterConfig(method=method, projector=True if method == "tokens" else None)
    module = trainable(model, config, Assembly.read(parts / "model"))
    trained = [name for name, p in module.named_parameters() if p.requires_grad and "multi_modal_projector" in name]
    assert len(trained) == 2 and all("linear_1" in name for name in trained)


@pytest.mark.parametrize(("method", "stage"), [("projector", "zero2"), ("lora", "zero3")])
def test_trained_and_written_it_is_linear(method: str, stage: str, parts: Path, english: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = [
        "demo", f"run={run}", f"model.base={parts / 'model'}", f"data.train={english}", "data.turns=joint",
        f"data.cache={tmp_path}", "data.batch_size=8", "optim.max_steps=2", "checkpoint.every=1", "engine.ranks=1",
        f"engine.deepspeed={stage}", f"adapter.method={method}",
    ]  # fmt: skip
    log = tmp_path / "log"
    assert run_ranks(arguments, log, ranks=1) == [0], log.read_text()
    first = load_file(checkpoint.step_folder(run, 2) / "optimizer" / "state.safetensors")
    assert not any("linear_2" in name for name in first)
    shutil.rmtree(checkpoint.step_folder(run, 2))
    assert run_ranks(arguments, log, ranks=1) == [0], log.read_text()
    again = load_file(checkpoint.step_folder(run, 2) / "optimizer" / "state.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    recipe: PipelineRecipe = load("demo", [*arguments[1:], f"eval.data={english}", "eval.adapter=latest"])
    if method == "projector":
        export(recipe, out)
    else:
        assert merge_recipe(recipe, out).max_difference <= 1e-5
        base = LlavaForConditionalGeneration.from_pretrained(parts / "model")
        peft = PeftModel.from_pretrained(base, checkpoint.step_folder(run, 2) / "adapter").merge_and_unload()
        assert torch.equal(peft.model.multi_modal_projector.linear_1.weight, _layers(out)["linear_1.weight"])
    old, new = _layers(parts / "model"), _layers(out)
    assert _is_identity(old) and _is_identity(new)
    assert not torch.equal(old["linear_1.weight"], new["linear_1.weight"])


def test_two_given_matrices_become_one(parts: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"linear_1.weight": torch.randn(HIDDEN, PATCH), "linear_1.bias": torch.randn(HIDDEN),
             "linear_2.weight": torch.randn(HIDDEN, HIDDEN), "linear_2.bias": torch.randn(HIDDEN)}  # fmt: skip
    save_file({f"multi_modal_projector.{name}": t for name, t in given.items()}, tmp_path / "projector.safetensors")
    assemble(
        parts / "tower", parts / "language", tmp_path / "out", template="vicuna_v1", projector="linear",
        projector_weights=tmp_path / "projector.safetensors",
    )  # fmt: skip
    layers, x = _layers(tmp_path / "out"), torch.randn(5, PATCH)
    assert _is_identity(layers)
    expected = (x @ given["linear_1.weight"].T + given["linear_1.bias"]) @ given["linear_2.weight"].T
    found = x @ layers["linear_1.weight"].T + layers["linear_1.bias"]
    torch.testing.assert_close(found, expected + given["linear_2.bias"], rtol=1e-4, atol=1e-4)


def test_two_layers_with_an_activation_are_both_trained(parts: Path, tmp_path: Path) -> None:
    assemble(parts / "tower", parts / "language", tmp_path / "out", template="vicuna_v1")
    model = load_model(tmp_path / "out", "float32", packed=True)
    assert len(list(model.model.multi_modal_projector.parameters())) == 4
