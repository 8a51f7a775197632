"""An adapter as vLLM loads it beside a base: `vllm serve BASE --enable-lora --lora-modules NAME=LORA`.

vLLM takes lora_A and lora_B of linear layers, with one rank and one scale for all of them, and neither saved modules,
trained tokens, biases nor DoRA (its vllm/lora/peft_helper.py and lora_model.py). What else was trained goes into a base
of its own, which is served in the old one's place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput
from shards.files import atomic_file, sealed_output, write_atomic, write_json
from vlm.data.template import load_template
from vlm.handover.peft_folder import check_base_name
from vlm.merge.adapter import CONFIG, WEIGHTS, Adapter, Edits, Lora
from vlm.merge.card import Card
from vlm.merge.changes import Change
from vlm.merge.companions import Facts, companions
from vlm.merge.layout import Layout, Stored, header_bytes
from vlm.merge.output import MODEL, RECORD, check_apart, put, workshop, write_weights
from vlm.merge.plan import MergePlan

BASE, LORA = "base", "lora"
# what --max-lora-rank may be (vllm/config/lora.py)
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Served:
    """The folders to serve: `base` is a new one where more than LoRA was trained, else the one that was given."""

    base: Path
    lora: Path
    max_lora_rank: int

    @property
    def command(self) -> str:
        return (
            f"vllm serve {self.base} --enable-lora --max-lora-rank {self.max_lora_rank} "
            f"--lora-modules {self.lora.absolute().parent.name}={self.lora}"
        )


@dataclass(frozen=True)
class Beside:
    """The changes of a base that a LoRA of `served` parameters goes beside."""

    edits: Edits
    served: frozenset[str]

    def shape(self, stored: Stored) -> tuple[int, ...] | None:
        return None if self._stays(stored) else self.edits.shape(stored)

    def change(self, stored: Stored) -> Change:
        return self.edits.change(stored)

    def _stays(self, stored: Stored) -> bool:
        return self.edits.layout.parameter(stored.name) in self.served


def vllm_folders(
    base: Path,
    adapter: Path,
    out: Path,
    facts: Facts,
    card: Card,
    base_name: str = "",
    progress: Callable[[int], None] = lambda read: None,
) -> Served:
    """Write OUT/lora and, where more than LoRA was trained, OUT/base; `base_name` is where others will find the base.

    BadInput for an adapter of another base, and for one of which nothing would be left for LoRA.
    """
    if base_name:
        check_base_name(base_name)
    if facts.template:
        load_template(facts.template)
    plan = MergePlan(base, [adapter], out / BASE)
    check_apart(out, plan.read)
    plan.check_seals()
    layout, found = Layout.read(base), Adapter.read(adapter)
    found.check(layout)
    served = _served(layout, found)
    if not served:
        raise BadInput(
            f"{adapter}: vLLM loads no such adapter (it takes LoRA, without DoRA, of the language model's layers); "
            "merge it with `vlm merge` and serve the merged folder"
        )
    ranks = {name: found.parts[name]["A"].shape[0] for name in served}
    rank = max(ranks.values())
    most = next((allowed for allowed in _RANKS if allowed >= rank), None)
    if most is None:
        raise BadInput(f"{adapter}: rank {rank}: vLLM takes at most {_RANKS[-1]}; merge it with `vlm merge` instead")
    own = base
    if found.parts.keys() - served:
        own = plan.out
        out.mkdir(parents=True, exist_ok=True)
        _write_base(plan, layout, Beside(Edits(layout, found), served), facts, progress)
    with sealed_output(out / LORA):
        _write_lora(out / LORA / WEIGHTS, found, sorted(served), rank)
        write_json(out / LORA / CONFIG, _config(sorted(served), rank, base_name or str(own)))
        write_atomic(out / LORA / "README.md", card.text())
    return Served(own, out / LORA, most)


def _served(layout: Layout, adapter: Adapter) -> frozenset[str]:
    """Parameters of the language model's layers that have LoRA matrices and nothing else."""
    layers = "model.language_model.layers." if layout.config.get("model_type") == "llava" else "model.layers."
    return frozenset(
        name
        for name, parts in adapter.parts.items()
        if parts.keys() == {"A", "B"} and name.startswith(layers) and name.endswith(".weight")
    )


def _write_base(plan: MergePlan, layout: Layout, source: Beside, facts: Facts, progress: Callable[[int], None]) -> None:
    told = {**plan.inputs(layout), "left": "LoRA"}
    with workshop(plan.out, told, plan.read) as folder:
        written = write_weights(layout, source, None, folder, progress)
        companions(plan.base, folder / MODEL, facts)
        write_json(folder / MODEL / RECORD, told)
        put(folder, plan.out, written)


def _write_lora(path: Path, adapter: Adapter, parameters: list[str], rank: int) -> None:
    """A layer at a time: the matrices of a large rank are not small."""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in parameters:
        a, b = adapter.parts[name]["A"], adapter.parts[name]["B"]
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = (a.dtype, (rank, a.shape[1]))
        tensors[f"{module}.lora_B.weight"] = (b.dtype, (b.shape[0], rank))
    dtypes = iter(tensors.values())
    with atomic_file(path) as handle:
        handle.write(header_bytes(tensors, {"format": "pt"}))
        for name in parameters:
            lora = adapter.lora(name)
            assert lora is not None
            for matrix in _padded(lora, rank):
                dtype, _ = next(dtypes)
                handle.write(matrix.to(dtype).contiguous().view(torch.uint8).numpy().data)


def _padded(lora: Lora, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of the common rank, with the scale in B: vLLM heeds neither alpha_pattern nor rank_pattern."""
    more = rank - lora.a_RC.shape[0]
    a = torch.nn.functional.pad(lora.a_RC, (0, 0, 0, more))
    return a, torch.nn.functional.pad(lora.b_OR * lora.scale, (0, more))


def _config(parameters: list[str], rank: int, base_name: str) -> Mapping[str, Any]:
    """PEFT's, for a scale of 1. Whole names, so that PEFT takes no layer of the tower for one of them."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [name.removesuffix(".weight") for name in parameters],
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "inference_mode": True,
    }
