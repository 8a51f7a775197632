"""The proof: its unmerged side is PEFT's forward pass, and what is not equal is refused with nothing written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MistralForCausalLM

from launch.cli import run as command
from tests.vlm.merge.proof_models import LINEAR, ia3, lora, write_adapter, write_base
from vlm.merge import proof as proofs
from vlm.merge import run
from vlm.merge.layout import Layout
from vlm.merge.plan import MergePlan
from vlm.merge.probes import Vocabulary, drawn
from vlm.merge.proof import Differs, Expected, Proof
from vlm.merge.run import Checks, merge
from vlm.merge.streamed import StreamedModel, Weights

METHODS = {
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "patterns": lora(rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.mlp.up_proj": 3}),
    "norm": lora(modules_to_save=["norm"]),
    "head": lora(modules_to_save=["lm_head"]),
    "embeddings": lora(modules_to_save=["embed_tokens"]),
    "low-rank embeddings": lora(target_modules=[*LINEAR, "embed_tokens", "lm_head"]),
    "tokens": lora(trainable_token_indices={"embed_tokens": [5, 2, 60], "lm_head": [5, 2, 60]}),
    "ia3": ia3(),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base")


@torch.inference_mode()
def _streamed(plan: MergePlan, ids: torch.Tensor) -> torch.Tensor:
    layout = Layout.read(plan.base)
    with Weights(layout, plan.source(layout), lambda read: None) as weights:
        model = StreamedModel(weights)
        hidden = model.hidden(ids, None)
        parts = [part for _, part in model.head.blocks(hidden.flatten(0, 1))]
    return torch.cat(parts, dim=1).view(*ids.shape, -1)


@torch.inference_mode()
def _pefts(plan: MergePlan, ids: torch.Tensor) -> torch.Tensor:
    model = MistralForCausalLM.from_pretrained(plan.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, plan.adapters[0]).eval()
    logits: torch.Tensor = adapted(input_ids=ids).logits
    return logits


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_unmerged_side_is_pefts_forward_pass(base: Path, config: PeftConfig, tmp_path: Path) -> None:
    plan = MergePlan(base, [write_adapter(base, tmp_path / "adapter", config)], tmp_path / "out")
    ids = torch.randint(64, (3, 11), generator=torch.Generator().manual_seed(1))
    expected = _pefts(plan, ids)
    assert float((_streamed(plan, ids) - expected).abs().max() / expected.abs().max()) < 1e-5
    proof = merge(plan, Checks(probes=3, answers=2))
    assert proof.max_difference < 1e-5 and (proof.probes, proof.answers, proof.same_answers) == (3, 2, 2)


def test_trained_tokens_of_a_tied_head(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=True)
    adapter = write_adapter(base, tmp_path / "adapter", lora(trainable_token_indices=[5, 60]))
    plan = MergePlan(base, [adapter], tmp_path / "out")
    ids = torch.arange(64)[None]
    expected = _pefts(plan, ids)
    assert float((_streamed(plan, ids) - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "least", "tolerance"), [("float32", 0.0, 1e-5), ("float16", 1e-4, 5e-3), ("bfloat16", 1e-3, 4e-2)]
)
def test_a_dtype_differs_by_its_rounding(
    base: Path, tmp_path: Path, dtype: str, least: float, tolerance: float
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", lora())
    proof = merge(MergePlan(base, [adapter], tmp_path / "out", dtype), Checks(probes=8))
    assert least < proof.max_difference < proof.tolerance == tolerance


def test_greedy_answers_are_those_of_generate(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, ...]] = []
    honest = proofs._answers

    def noting(*arguments: Any) -> Any:
        found = honest(*arguments)
        said.extend(each.answer for each in found)
        return found

    monkeypatch.setattr(proofs, "_answers", noting)
    adapter = write_adapter(base, tmp_path / "adapter", lora())
    proof = merge(MergePlan(base, [adapter], tmp_path / "out"), Checks(probes=4, answers=3))
    assert proof.same_answers == 3 and said[3] == ()
    model = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    for probe, answer in zip(drawn(3, Vocabulary.of(base, model.config), model.config), said[:3], strict=True):
        ids = torch.tensor([probe.prompt])
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert tuple(made[0, ids.shape[1] :].tolist()) == answer


def test_what_differs_is_refused_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", lora())
    honest = run.write_weights

    def faulty(*args: object) -> object:
        done = honest(*args)  # type: ignore[arg-type]
        for path in (args[3] / "model").glob("*.safetensors"):  # type: ignore[operator]
            weights = load_file(path)
            name = "model.layers.1.mlp.down_proj.weight"
            if name in weights:
                # one row of the base's own
                weights[name][7] = 0
                save_file(weights, path, {"format": "pt"})
        return done

    monkeypatch.setattr(run, "write_weights", faulty)
    arguments = ["merge", str(adapter), "--base", str(base), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert command(arguments) == 1
    said = capsys.readouterr().err
    assert "merged logits differ from base + adapter by" in said and len(said.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    monkeypatch.undo()
    assert command(arguments) == 0


def _proven(plan: MergePlan, checks: Checks) -> Proof:
    """By its probes alone."""
    layout = Layout.read(plan.base)
    expected = Expected.of(layout, plan.source(layout), checks.of(plan.base), checks.limits)
    return expected.compare(Layout.read(plan.out))


def test_a_difference_in_answers_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of two tokens exchanged: an answer is another, which a wide tolerance lets pass."""
    adapter = write_adapter(base, tmp_path / "adapter", lora())
    plan, checks = MergePlan(base, [adapter], tmp_path / "out"), Checks(probes=1, answers=1)
    merge(plan, checks)
    config = AutoConfig.from_pretrained(base)
    (probe,) = drawn(1, Vocabulary.of(base, config), config)
    logits = _pefts(plan, torch.tensor([probe.prompt]))[0, -1]
    best, second = logits.topk(2).indices.tolist()
    head = next(path for path in plan.out.glob("*.safetensors") if "lm_head.weight" in load_file(path))
    weights = load_file(head)
    rows = weights["lm_head.weight"]
    rows[[best, second]] = rows[[second, best]]
    save_file(weights, head, {"format": "pt"})
    with pytest.raises(Differs, match="merged logits differ"):
        _proven(plan, checks)
    # a number in bfloat16 does not excuse all others
    save_file({**weights, "unused": torch.zeros(1, dtype=torch.bfloat16)}, head, {"format": "pt"})
    with monkeypatch.context() as patch:
        patch.setitem(proofs.TOLERANCE, torch.bfloat16, 1.0)
        with pytest.raises(Differs, match="merged logits differ"):
            _proven(plan, checks)
    save_file(weights, head, {"format": "pt"})
    monkeypatch.setitem(proofs.TOLERANCE, torch.float32, 1.0)
    proof = _proven(plan, checks)
    assert proof.same_answers == 0
    assert proof.first_difference.startswith(f"drawn-0: token 1 is {second} instead of {best}, by a margin of ")
    margin = float(logits[best] - logits[second]) / float(logits.abs().max())
    assert 0.5 * margin < float(proof.first_difference.split()[-5]) <= 1.1 * margin
