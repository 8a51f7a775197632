"""Adapters that do not fit, or that lie: refused, naming the first thing that is wrong."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shards.errors import BadInput
from tests.vlm.merge.models import (
    ADAPTER,
    CONFIG,
    base,
    edits,
    ia3,
    lora,
    merged,
    names,
    one_rounding,
    peft_merged,
    rewrite_adapter,
    train,
)
from vlm.merge import alphas

Q = "base_model.model.model.layers.0.self_attn.q_proj"

DELTA = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(model, lora(), tmp_path_factory.mktemp("adapters") / "lora")


@pytest.mark.parametrize(
    ("tensors", "config", "fault"),
    [
        ({f"{Q}.lora_A.weight": None}, {}, "self_attn.q_proj.weight lacks its LoRA part A"),
        ({f"{Q}.lora_B.weight": None}, {}, "self_attn.q_proj.weight lacks its LoRA part B"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 31)}, {},
         r"q_proj.lora_A.weight of shape \(4, 31\) does not fit .*q_proj.weight of shape \(32, 32\)"),
        ({f"{Q}.lora_B.weight": torch.zeros(32, 3)}, {}, r"q_proj.lora_B.weight of shape \(32, 3\) does not fit"),
        ({f"{Q}.lora_A.weight": torch.zeros(0, 32), f"{Q}.lora_B.weight": torch.zeros(32, 0)}, {},
         "lora_A.weight has no rank"),
        ({f"{Q}.lora_A.weight": torch.tensor(1.0)}, {}, "lora_A.weight has no rank"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 32, dtype=torch.int8)}, {}, "torch.int8, no weights"),
        ({f"{Q}.lora_magnitude_vector": torch.zeros(32)}, {}, "should not have its LoRA part magnitude"),
        ({}, {"use_dora": True}, "down_proj.weight lacks its LoRA part magnitude"),
        ({f"{Q}.lora_B.bias": torch.zeros(31)}, {}, r"lora_B.bias of shape \(31,\) does not fit"),
        ({"base_model.model.lm_head.lora_B.bias": torch.zeros(72)}, {}, "lm_head.lora_B.bias stands without LoRA"),
        ({"base_model.model.model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)}, {},
         "layers.2.mlp.up_proj.weight is for .*, no weight of"),
        ({"base_model.model.model.norm.weight": torch.zeros(33)}, {}, r"norm.weight of shape \(33,\) does not fit"),
        # an embedding may grow, another weight of as many columns may not
        ({"base_model.model.model.layers.0.mlp.up_proj.weight": torch.zeros(65, 32)}, {}, r"\(65, 32\) does not fit"),
        ({"base_model.model.model.embed_tokens.weight": torch.zeros(71, 32)}, {}, r"\(71, 32\) does not fit"),
        ({"model.norm.weight": torch.zeros(32)}, {}, "no name that PEFT gives"),
        ({f"{Q}.weight": torch.zeros(32, 32), f"{Q}.base_layer.weight": torch.zeros(32, 32)}, {}, "is there twice"),
        ({DELTA: torch.zeros(1, 32)}, {"trainable_token_indices": [72]}, "does not fit"),
        ({DELTA: torch.zeros(2, 32)}, {"trainable_token_indices": [3, 3]},
         "does not tell the rows"),
        ({DELTA: torch.zeros(1, 32)}, {"trainable_token_indices": [2**70]}, "does not fit"),
        ({DELTA: torch.zeros(1, 32)}, {"trainable_token_indices": {"lm_head": [1]}},
         "does not tell the rows"),
        ({f"{Q}.ia3_l": torch.ones(32, 1)}, {}, "ia3_l is no tensor of a LORA adapter"),
        ({}, {"lora_alpha": None}, "lora_alpha: a number is wanted, not None"),
        ({}, {"lora_alpha": True}, "lora_alpha: a number is wanted"),
        ({}, {"lora_alpha": 10**400}, "lora_alpha: a number is wanted"),
        ({}, {"lora_alpha": "16"}, "lora_alpha: a number is wanted"),
        ({}, {"alpha_pattern": {"q_proj": None}}, "alpha_pattern: q_proj: a number is wanted"),
        ({}, {"alpha_pattern": [1]}, "alpha_pattern: an object"),
        ({}, {"alpha_pattern": {"(q_proj": 3}}, r"alpha_pattern: \(q_proj is no usable pattern"),
        ({}, {"alpha_pattern": {"((((x{999}){999}){999}){999})": 3}}, "no usable pattern"),
        ({}, {"alpha_pattern": {"q" * 501: 3}}, "no usable pattern"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
        ({}, {"layer_replication": [[0, 2]]}, "layer_replication is set"),
        ({}, {"peft_type": "XLORA"}, "XLORA cannot be merged"),
        ({}, {"peft_type": ["LORA"]}, "cannot be merged"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    model: Path, adapter: Path, tensors: dict[str, Any], config: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    folder = rewrite_adapter(adapter, tmp_path / "adapter", tensors, **config)
    with pytest.raises(BadInput, match=fault) as caught:
        edits(model, folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e999"])
def test_an_alpha_that_is_no_number(model: Path, adapter: Path, alpha: str, tmp_path: Path) -> None:
    for key in ('"lora_alpha": 6', '"alpha_pattern": {}'):
        folder = shutil.copytree(adapter, tmp_path / key[1:6])
        text = (folder / CONFIG).read_text()
        assert key in text
        told = f'"lora_alpha": {alpha}' if "lora" in key else f'"alpha_pattern": {{"q_proj": {alpha}}}'
        (folder / CONFIG).write_text(text.replace(key, told))
        with pytest.raises(BadInput, match=r"not valid JSON|a number is wanted"):
            edits(model, folder)


def test_a_pattern_that_takes_years_is_given_up(
    model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(alphas, "_SECONDS", 0.2)
    folder = rewrite_adapter(adapter, tmp_path / "adapter", alpha_pattern={r"(\w|\w\w|\W)+[!?]": 1})
    with pytest.raises(BadInput, match="alpha_pattern takes more than"):
        edits(model, folder)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("end", ["q_proj.lora_A.weight", "norm.weight"])
def test_weights_that_are_no_numbers(model: Path, bad: float, end: str, tmp_path: Path) -> None:
    adapter = train(model, lora(modules_to_save=["norm"]), tmp_path / "good")
    name = names(adapter, end)[0]
    tensor = load_file(adapter / ADAPTER)[name]
    tensor.view(-1)[-1] = bad
    folder = rewrite_adapter(adapter, tmp_path / "bad", {name: tensor})
    with pytest.raises(BadInput, match=f"{end} holds a value that is not finite"):
        merged(model, folder, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_adapter_of_another_dtype(model: Path, adapter: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(adapter / ADAPTER).items()}
    folder = rewrite_adapter(adapter, tmp_path / "adapter", tensors)
    one_rounding(merged(model, folder, tmp_path / "out", torch.bfloat16), peft_merged(model, folder), torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"target_modules": ["lm_head"]}, "lm_head.weight"),
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens.weight"),
        ({"target_modules": ["embed_tokens", "lm_head"]}, r"lm_head.weight and model.embed_tokens.weight"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
        ({"modules_to_save": ["embed_tokens"]}, "model.embed_tokens.weight"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, r"lm_head.weight and model.embed_tokens.weight"),
    ],
)
def test_a_tied_head_is_not_parted_from_the_embeddings(options: dict[str, Any], changed: str, tmp_path: Path) -> None:
    model = base(tmp_path / "base", tied=True)
    adapter = train(model, lora(**options), tmp_path / "adapter")
    with pytest.raises(BadInput, match=rf"changes {changed}, and .* has one weight.*tie_word_embeddings=False"):
        edits(model, adapter)


def test_a_head_adapted_as_one_with_the_embeddings_is_changed_once(tmp_path: Path) -> None:
    """PEFT's own merge adds such a product to the shared weight twice."""
    model = base(tmp_path / "base", tied=True)
    tied = train(model, lora(target_modules=["embed_tokens"], ensure_weight_tying=True), tmp_path / "tied")
    found = merged(model, tied, tmp_path / "out")["model.embed_tokens.weight"]
    weights = load_file(tied / ADAPTER)
    (a,), (b,) = (names(tied, end) for end in ("embedding_A", "embedding_B"))
    before = load_file(model / "model.safetensors")["model.embed_tokens.weight"].float()
    torch.testing.assert_close(found, before + 6 / 4 * (weights[b] @ weights[a]).T)


def test_a_quantised_base_is_refused_by_the_first_weight(model: Path, adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "base")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(weights | {name: torch.zeros(1024, 1, dtype=torch.uint8)}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=f"{name} is quantised; give the base as it was before"):
        edits(folder, adapter)


def test_folders_that_are_no_adapters(model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no adapter_model\.safetensors"):
        edits(model, tmp_path)
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / CONFIG).write_text(json.dumps("x" * 2**23))
    with pytest.raises(BadInput, match="larger than"):
        edits(model, folder)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(BadInput, match="garbage"):
        edits(model, folder)
    (folder / CONFIG).unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        edits(model, folder)
    shutil.copy(adapter / CONFIG, folder)
    (folder / ADAPTER).write_bytes((adapter / ADAPTER).read_bytes()[:-1])
    with pytest.raises(BadInput, match="its header speaks of"):
        edits(model, folder)
    (folder / ADAPTER).unlink()
    (folder / ADAPTER).mkdir()
    with pytest.raises(BadInput, match=r"holds no adapter_model\.safetensors"):
        edits(model, folder)


def test_ia3_of_the_wrong_length(model: Path, tmp_path: Path) -> None:
    adapter = train(model, ia3(), tmp_path / "ia3")
    for name, shape in ((f"{Q}.ia3_l", (31, 1)), (names(adapter, "down_proj.ia3_l")[0], (1, 63))):
        folder = rewrite_adapter(adapter, tmp_path / str(shape[0]), {name: torch.ones(shape)})
        with pytest.raises(BadInput, match=r"ia3_l of shape .* does not fit"):
            edits(model, folder)
