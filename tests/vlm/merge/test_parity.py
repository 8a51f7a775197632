"""A merge gives what PEFT's `merge_and_unload` gives in float32, rounded once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.vlm.merge.models import LINEAR, base, ia3, lora, merged, one_rounding, peft_merged, train
from vlm.model.adapter import AdapterConfig, load_adapter, trainable
from vlm.model.adapter import merged as merged_in_memory
from vlm.model.assemble import Assembly
from vlm.model.load import load_model

ADAPTERS: dict[str, Any] = {
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "lora bias": lora(target_modules=["q_proj", "v_proj"], lora_bias=True),
    "biases": lora(bias="all"),
    "saved modules": lora(modules_to_save=["norm", "input_layernorm"]),
    "trained tokens": lora(trainable_token_indices=[60, 5, 2]),
    "patterns": lora(
        rank_pattern={"q_proj": 2, "layers.0.mlp.down_proj": 5}, alpha_pattern={r"layers.1\..*": 3, "o_proj": 9}
    ),
    "all": lora(use_rslora=True, use_dora=True, rank_pattern={"q_proj": 2}, modules_to_save=["norm"]),
    "ia3": ia3(),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, bool], Path]:
    """By (tied, sharded)."""
    folder = tmp_path_factory.mktemp("bases")
    cases = [(tied, sharded) for tied in (False, True) for sharded in (False, True)]
    return {(t, s): base(folder / f"{t}{s}", t, "20KB" if s else "5GB") for t, s in cases}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(("tied", "sharded"), [(False, True), (True, False)])
def test_every_kind_of_adapter(
    bases: dict[tuple[bool, bool], Path], kind: str, tied: bool, sharded: bool, tmp_path: Path
) -> None:
    model = bases[tied, sharded]
    adapter = train(model, ADAPTERS[kind], tmp_path / "adapter")
    exact = peft_merged(model, adapter)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        one_rounding(merged(model, adapter, tmp_path / str(dtype), dtype), exact, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lora_as_peft_merges_it_in_the_models_own_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = base(tmp_path / "base", dtype=dtype)
    adapter = train(model, lora(), tmp_path / "adapter")
    one_rounding(merged(model, adapter, tmp_path / "out", dtype), peft_merged(model, adapter, dtype), dtype)


@pytest.mark.parametrize(
    "config",
    [
        lora(target_modules=[*LINEAR, "embed_tokens", "lm_head"]),
        lora(target_modules=[*LINEAR, "embed_tokens"], use_dora=True),
        lora(modules_to_save=["embed_tokens", "lm_head"]),
        lora(trainable_token_indices={"embed_tokens": [7, 3], "lm_head": [1]}),
    ],
    ids=["both adapted", "DoRA", "both saved", "tokens of each"],
)
def test_embeddings_and_a_head_of_its_own(
    bases: dict[tuple[bool, bool], Path], config: LoraConfig, tmp_path: Path
) -> None:
    model = bases[False, True]
    adapter = train(model, config, tmp_path / "adapter")
    one_rounding(merged(model, adapter, tmp_path / "out", torch.bfloat16), peft_merged(model, adapter), torch.bfloat16)


def test_a_head_trained_as_one_with_the_embeddings_stays_one(
    bases: dict[tuple[bool, bool], Path], tmp_path: Path
) -> None:
    model = bases[True, False]
    adapter = train(model, lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True), tmp_path / "adapter")
    one_rounding(merged(model, adapter, tmp_path / "out", torch.bfloat16), peft_merged(model, adapter), torch.bfloat16)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_llava_by_the_names_in_its_files(model: Path, method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"r": 4, "dora": True} if method == "lora" else {}
    adapted = trainable(
        load_model(model, "float32", packed=False), AdapterConfig(method=method, **options), Assembly.read(model)
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    # PEFT's own merge of (IA)³ fails on a saved projector
    exact = merged_in_memory(
        load_adapter(load_model(model, "float32", packed=False), tmp_path / "adapter")
    ).state_dict()
    one_rounding(merged(model, tmp_path / "adapter", tmp_path / "out", torch.bfloat16), exact, torch.bfloat16)
    before = load_model(model, "float32", packed=False).state_dict()
    changed = {name for name, tensor in exact.items() if (tensor - before[name]).abs().max() > 0.01}
    assert any("v_proj" in name for name in changed) and any("multi_modal_projector" in name for name in changed)
