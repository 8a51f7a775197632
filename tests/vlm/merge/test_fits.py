"""A base that is no model of its configuration, or computes nothing, is refused before anything is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shards.errors import BadInput
from shards.files import write_manifest
from tests.vlm.merge.proof_models import lora, write_adapter, write_base
from vlm.merge.combine import Combination
from vlm.merge.plan import MergePlan
from vlm.merge.run import Checks, Telling, merge

EMBEDDINGS, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_base(folder / "base")
    write_adapter(folder / "base", folder / "adapter", lora())
    return folder


def refused(folder: Path, **more: Any) -> str:
    """What is said of it; that nothing was written, nor left."""
    plan = MergePlan(folder / "base", [folder / "adapter"], folder / "out", **more)
    written: list[int] = []
    with pytest.raises(BadInput) as caught:
        merge(plan, Checks(probes=1), telling=Telling(written=lambda done, total: written.append(done)))
    assert written == [] and not plan.out.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"num_hidden_layers": 1}, "weight would be changed, but the model of config.json"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2."),
        ({"num_hidden_layers": "x"}, "config.json is of no model"),
        ({"hidden_size": 48}, "config.json makes it floats of shape (64, 48)"),
        ({"vocab_size": 10}, "config.json makes it floats of shape (10, 32)"),
        ({"hidden_size": 10**9}, "config.json"),
        ({"text_config": []}, "config.json"),
        ({"dtype": "nosuch"}, "config.json"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "not"),
    ],
)
def test_a_configuration_of_another_model(sound: Path, tmp_path: Path, told: dict[str, Any], said: str) -> None:
    folder = shutil.copytree(sound, tmp_path / "sound")
    path = folder / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    assert said in refused(folder)


def change(path: Path, **tensors: torch.Tensor) -> None:
    for file in path.glob("*.safetensors"):
        weights = load_file(file)
        save_file({name: tensors.get(name, weight) for name, weight in weights.items()}, file, {"format": "pt"})


def test_weights_that_compute_nothing(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "sound")
    change(folder / "base", **{NORM: torch.full((32,), torch.nan)})
    assert f"{NORM} holds a value that is not finite" in refused(folder)
    change(folder / "base", **{NORM: torch.zeros(32)})
    assert "its logits are all 0 or not finite" in refused(folder)
    write_manifest(folder / "base")
    change(folder / "base", **{NORM: torch.full((32,), torch.nan)})
    assert "damaged" in refused(folder)
    change(folder / "base", **{NORM: torch.ones(1)})
    (folder / "base" / "MANIFEST.json").unlink()
    assert "of shape (1,)" in refused(folder)


def test_tokens_added_to_one_end_alone(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "sound")
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), f"base_model.model.{EMBEDDINGS}": torch.randn(70, 32)}, path)
    assert "embeddings of 70 tokens and a head of 64" in refused(folder)


def test_a_density_that_keeps_nothing(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "sound")
    assert "--density 0.001: keeps none of the 128 numbers" in refused(folder, how=Combination("ties", 0.001))
