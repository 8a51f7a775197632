"""A folder from elsewhere is the merged model in each of its rows, or is refused by the name of what is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM

from shards.errors import BadInput
from tests.vlm.merge.proof_models import lora, write_adapter, write_base
from vlm.merge.plan import MergePlan
from vlm.merge.proof import Differs
from vlm.merge.run import Checks, verify

CHECKS = Checks(probes=1)
# one that no drawn input holds
UNSEEN = 41


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MergePlan:
    """PEFT's own merge, in the dtype of the model it was loaded in."""
    folder = tmp_path_factory.mktemp("elsewhere")
    base = write_base(folder / "base")
    plan = MergePlan(base, [write_adapter(base, folder / "adapter", lora())], folder / "merged")
    model = MistralForCausalLM.from_pretrained(base, dtype=getattr(torch, request.param))
    PeftModel.from_pretrained(model, plan.adapters[0]).merge_and_unload().save_pretrained(plan.out)
    return plan


def changed(plan: MergePlan, folder: Path, tensor: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    shutil.copytree(plan.out, folder)
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        if tensor in weights:
            save_file({**weights, tensor: change(weights[tensor])}, path, {"format": "pt"})
    return folder


def test_what_peft_merged(elsewhere: MergePlan) -> None:
    verify(elsewhere, elsewhere.out, CHECKS)


def _row(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[UNSEEN] = value
        return weight

    return change


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("tensor", "change", "said"),
    [
        ("model.embed_tokens.weight", _row(0.5), f": row {UNSEEN} is off by"),
        ("model.embed_tokens.weight", _row(torch.nan), " holds a value that is not finite"),
        ("model.norm.weight", lambda w: w.repeat(2), r" holds torch.* of shape \(64,\); it should be \(32,\)"),
        ("lm_head.weight", lambda w: w[0].clone(), r" holds torch.* of shape \(32,\); it should be \(64, 32\)"),
        (UP, lambda w: w[None], r" holds torch.* of shape \(1, 64, 32\)"),
        (UP, lambda w: w.char(), " holds torch.int8"),
    ],
)
def test_what_no_probe_sees(elsewhere: MergePlan, tmp_path: Path, tensor: str, change: Any, said: str) -> None:
    with pytest.raises((Differs, BadInput), match=f"{tensor}{said}"):
        verify(elsewhere, changed(elsewhere, tmp_path / "changed", tensor, change), CHECKS)


def test_the_base_alone(elsewhere: MergePlan) -> None:
    with pytest.raises(Differs, match=r"base is not .*base with .*adapter: .* is the base's own: that"):
        verify(elsewhere, elsewhere.base, CHECKS)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"vocab_size": 70}, r"shape \(64, 32\) .*shape \(70, 32\)"),
        ({"num_key_value_heads": 4}, "k_proj.weight of shape"),
        ({"num_hidden_layers": 9}, "lacks model.layers.2."),
        ({"num_hidden_layers": "x"}, "config.json is of no model"),
        ({"quantization_config": {"quant_method": "gptq"}}, "remove it"),
    ],
)
def test_another_configuration(elsewhere: MergePlan, tmp_path: Path, told: dict[str, Any], said: str) -> None:
    shutil.copytree(elsewhere.out, tmp_path / "changed")
    path = tmp_path / "changed" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    with pytest.raises(BadInput, match=said):
        verify(elsewhere, path.parent, CHECKS)
