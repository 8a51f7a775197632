"""Several adapters by weight: PEFT's sums, and what PEFT has none for."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from shards.errors import BadInput
from tests.vlm.merge.models import (
    LINEAR,
    base,
    ia3,
    load,
    lora,
    merged,
    names,
    one_rounding,
    peft_merged,
    rewrite_adapter,
    train,
    written,
)
from vlm.merge.adapter import Adapter
from vlm.merge.combine import KINDS, Combination, Combined
from vlm.merge.layout import Layout

Weights = dict[str, torch.Tensor]


def combined(model: Path, adapters: Sequence[Path], weights: Sequence[float], how: Combination, out: Path) -> Weights:
    """In float32."""
    source = Combined(Layout.read(model), [Adapter.read(folder) for folder in adapters], weights, how)
    source.check()
    return load(written(source, source.layout, out)).state_dict()


def by_peft(model: Path, adapters: Sequence[Path], weights: Sequence[float], kind: str, **options: Any) -> Weights:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(load(model), adapters[0], adapter_name="0")
        for i, folder in enumerate(adapters[1:], 1):
            adapted.load_adapter(folder, adapter_name=str(i))
        named = [str(i) for i in range(len(adapters))]
        adapted.base_model.add_weighted_adapter(named, list(weights), "sum", **options, combination_type=kind)
        adapted.set_adapter("sum")
        return adapted.merge_and_unload().state_dict()


def _noise(kind: str) -> float:
    """What PEFT's decomposition, in float32, leaves; ours is in float64."""
    return 4e-6 if kind.endswith("svd") else 1e-7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("models") / "base", shard="20KB")


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of other scales; the third does not adapt all that the others do."""
    folder = tmp_path_factory.mktemp("adapters")
    configs = [lora(), lora(lora_alpha=9), lora(target_modules=["q_proj", "down_proj"])]
    return [train(model, config, folder / str(i), seed=i) for i, config in enumerate(configs)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [(0.6, 0.3, 0.2), (1.0, -0.5, 0.7)], ids=["sum", "difference"])
def test_kinds_give_what_peft_gives(
    model: Path, adapters: list[Path], kind: str, weights: Sequence[float], tmp_path: Path
) -> None:
    # of DARE random numbers are in the way: all are kept here, and other tests look at the rest
    density = 1.0 if "dare" in kind else 0.4
    pruned = {"density": density} if kind not in ("cat", "svd", "linear") else {}
    found = combined(model, adapters, weights, Combination(kind, **pruned), tmp_path / "out")
    one_rounding(found, by_peft(model, adapters, weights, kind, **pruned), torch.float32, _noise(kind))


@pytest.mark.parametrize("kind", ["ties", "ties_svd"])
def test_signs_by_their_number_and_a_rank_of_ones_own(
    model: Path, adapters: list[Path], kind: str, tmp_path: Path
) -> None:
    rank = {"rank": 2} if kind == "ties_svd" else {}
    how = Combination(kind, density=0.5, sign="frequency", **rank)
    found = combined(model, adapters, (1, 1, 1), how, tmp_path / "out")
    options = {"svd_rank": 2} if rank else {}
    wanted = by_peft(model, adapters, (1, 1, 1), kind, density=0.5, majority_sign_method="frequency", **options)
    one_rounding(found, wanted, torch.float32, _noise(kind))


@pytest.mark.parametrize("kind", ["linear", "cat", "svd", "magnitude_prune"])
def test_adapted_embeddings_and_other_ranks(model: Path, kind: str, tmp_path: Path) -> None:
    ranks = (4, 4) if kind in ("linear", "magnitude_prune") else (4, 3)
    targets = [*LINEAR, "embed_tokens", "lm_head"]
    given = [train(model, lora(r=r, target_modules=targets), tmp_path / f"{i}", i) for i, r in enumerate(ranks)]
    pruned = {"density": 0.5} if kind == "magnitude_prune" else {}
    found = combined(model, given, (0.9, -0.4), Combination(kind, **pruned), tmp_path / "out")
    one_rounding(found, by_peft(model, given, (0.9, -0.4), kind, **pruned), torch.float32, _noise(kind))


def test_dare_draws_by_name_and_seed(model: Path, adapters: list[Path], tmp_path: Path) -> None:
    def draw(name: str, seed: int, kind: str = "dare_linear") -> Weights:
        torch.manual_seed(hash(name) % 1000)
        return combined(model, adapters[:2], (1, 1), Combination(kind, density=0.5, seed=seed), tmp_path / name)

    one, again, other, ties = draw("a", 0), draw("b", 0), draw("c", 1), draw("d", 0, "dare_ties_svd")
    assert all(torch.equal(one[name], again[name]) for name in one)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one[name], other[name]) and not torch.equal(one[name], ties[name])
    # half of the numbers are dropped and the others doubled: two draws in the mean are nearer to all than one
    full = combined(model, adapters[:2], (1, 1), Combination("linear"), tmp_path / "full")
    assert (one[name] - full[name]).norm() > ((one[name] + other[name]) / 2 - full[name]).norm() > 0


def test_all_else_counts_as_its_difference_from_the_base(model: Path, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj"], "lora_bias": True}
    one = train(model, lora(**options, modules_to_save=["norm"], trainable_token_indices=[3, 8]), tmp_path / "one", 1)
    two = train(model, lora(**options, trainable_token_indices=[8, 9]), tmp_path / "two", 2)
    found = combined(model, [one, two], (0.25, 0.5), Combination("cat"), tmp_path / "out")
    alone = [merged(model, each, tmp_path / f"{each.name} alone") for each in (one, two)]
    plain = load(model).state_dict()
    wanted = {n: w + 0.25 * (alone[0][n] - w) + 0.5 * (alone[1][n] - w) for n, w in plain.items()}
    one_rounding(found, wanted, torch.float32)
    assert not torch.equal(found["model.norm.weight"], plain["model.norm.weight"])
    assert not torch.equal(found["model.embed_tokens.weight"][9], plain["model.embed_tokens.weight"][9])
    again = combined(model, [one, two], (0.25, 0.5), Combination("svd", rank=8), tmp_path / "svd")
    one_rounding(again, wanted, torch.float32, _noise("svd"))


def test_dora_adds_up_and_is_refused_where_matrices_are_mixed(model: Path, tmp_path: Path) -> None:
    one, two = (train(model, lora(use_dora=True), tmp_path / f"{i}", i) for i in (1, 2))
    found = combined(model, [one, two], (0.5, 0.5), Combination("cat"), tmp_path / "out")
    alone = [peft_merged(model, each) for each in (one, two)]
    one_rounding(found, {name: (alone[0][name] + alone[1][name]) / 2 for name in found}, torch.float32)
    with pytest.raises(BadInput, match=r"_proj.weight: DoRA adapters are combined with --combine cat alone"):
        combined(model, [one, two], (1, 1), Combination("linear"), tmp_path / "no")


def test_rslora_is_scaled_once(model: Path, tmp_path: Path) -> None:
    one, two = (train(model, lora(use_rslora=True, r=r), tmp_path / f"{r}", r) for r in (4, 2))
    found = combined(model, [one, two], (1, 1), Combination("cat"), tmp_path / "out")
    plain, alone = load(model).state_dict(), [peft_merged(model, each) for each in (one, two)]
    one_rounding(found, {n: alone[0][n] + alone[1][n] - plain[n] for n in found}, torch.float32)


def test_ia3_as_peft_where_the_weights_sum_is_one(model: Path, tmp_path: Path) -> None:
    one, two = (train(model, ia3(), tmp_path / f"{i}", i) for i in (1, 2))
    adapted = PeftModel.from_pretrained(load(model), one, adapter_name="0")
    adapted.load_adapter(two, adapter_name="1")
    adapted.base_model.add_weighted_adapter(["0", "1"], [0.3, 0.7], "sum")
    adapted.set_adapter("sum")
    wanted = adapted.merge_and_unload().state_dict()
    one_rounding(combined(model, [one, two], (0.3, 0.7), Combination(), tmp_path / "out"), wanted, torch.float32)
    with pytest.raises(BadInput, match="combined with --combine cat or linear, not svd"):
        combined(model, [one, two], (1, 1), Combination("svd"), tmp_path / "no")
    with pytest.raises(BadInput, match="cannot be combined with each other"):
        combined(model, [one, train(model, lora(), tmp_path / "lora")], (1, 1), Combination(), tmp_path / "no")


def test_misfits_are_refused(model: Path, adapters: list[Path], tmp_path: Path) -> None:
    small = train(model, lora(r=2), tmp_path / "small")
    with pytest.raises(BadInput, match=r"of ranks \[2, 4\]; --combine linear wants one"):
        combined(model, [adapters[0], small], (1, 1), Combination("linear"), tmp_path / "no")
    with pytest.raises(BadInput, match="3 weights for 2 adapters"):
        combined(model, adapters[:2], (1, 1, 1), Combination(), tmp_path / "no")
    with pytest.raises(BadInput, match="numbers are wanted"):
        combined(model, adapters[:2], (1, float("nan")), Combination(), tmp_path / "no")
    other = rewrite_adapter(small, tmp_path / "other", {names(small, "q_proj.lora_A.weight")[0]: torch.zeros(2, 5)})
    with pytest.raises(BadInput, match=r"other: .*q_proj.lora_A.weight of shape \(2, 5\) does not fit"):
        combined(model, [adapters[0], other], (1, 1), Combination(), tmp_path / "no")
    for options, fault in [
        ({"kind": "mean"}, "--combine mean"), ({"kind": "ties"}, "--density: missing"),
        ({"kind": "cat", "density": 0.5}, "--density: is not for"), ({"kind": "ties", "density": 1.5}, "--density 1.5"),
        ({"kind": "ties", "density": float("nan")}, "--density nan"), ({"kind": "cat", "rank": 3}, "--rank 3"),
        ({"kind": "ties", "density": 1, "sign": "both"}, "--sign both"),
    ]:  # fmt: skip
        with pytest.raises(BadInput, match=fault):
            Combination(**options)


def test_a_grown_vocabulary_wants_the_same_rows_of_all(model: Path, tmp_path: Path) -> None:
    saved = lora(modules_to_save=["embed_tokens", "lm_head"])
    grown = []
    for i in (1, 2):
        adapter = train(model, saved, tmp_path / f"small{i}", i)
        ends = [*names(adapter, "embed_tokens.weight"), *names(adapter, "lm_head.weight")]
        grown.append(rewrite_adapter(adapter, tmp_path / f"{i}", {name: torch.randn(80, 32) for name in ends}))
    source = Combined(Layout.read(model), [Adapter.read(folder) for folder in grown], (0.5, 0.5), Combination())
    source.check()
    layout = Layout.read(model)
    embeddings = layout.tensors["model.embed_tokens.weight"]
    assert source.shape(embeddings) == (80, 32)
    rows = torch.zeros(8, 32)
    source.change(embeddings).apply(rows, 72)
    each = [Adapter.read(folder).parts["model.embed_tokens.weight"]["whole"].read() for folder in grown]
    torch.testing.assert_close(rows, (each[0] + each[1])[72:] / 2)
    with pytest.raises(BadInput, match="has new rows"):
        combined(
            model, [grown[0], train(model, lora(), tmp_path / "plain")], (0.5, 0.5), Combination(), tmp_path / "no"
        )
    with pytest.raises(BadInput, match="has new rows"):
        combined(model, grown, (1, 1), Combination(), tmp_path / "no")
