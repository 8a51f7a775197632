"""A tiny run with an adapter of random weights, and its merge, for the tests of handing over."""

from pathlib import Path
from typing import Any

import torch

from shards.files import write_json, write_manifest
from vlm.data.images import Pixels
from vlm.merge.adapter import Adapter, Edits
from vlm.merge.companions import Facts, companions
from vlm.merge.layout import Layout
from vlm.merge.output import MODEL, RECORD, put, workshop, write_weights
from vlm.model.adapter import AdapterConfig, save_adapter, trainable
from vlm.model.assemble import Assembly
from vlm.model.load import load_model
from vlm.model.packed import PackedLlava


def write_run(folder: Path, model: Path, **options: Any) -> Path:
    """A run in `folder` whose one checkpoint holds an adapter of random, not small, weights; the adapter's folder."""
    torch.manual_seed(0)
    loaded = load_model(model, "float32", packed=True)
    packed = PackedLlava(trainable(loaded, AdapterConfig(**options), Assembly.read(model)), Pixels.of(model))
    weights = {n: p + 0.05 * torch.randn_like(p) for n, p in packed.named_parameters() if p.requires_grad}
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    save_adapter(packed, {name: weight.detach() for name, weight in weights.items()}, checkpoint)
    write_manifest(checkpoint)
    return checkpoint / "adapter"


def merge(base: Path, adapter: Path, out: Path, facts: Facts, dtype: torch.dtype | None = None) -> None:
    layout, read = Layout.read(base), Adapter.read(adapter)
    read.check(layout)
    with workshop(out, {}, [base, adapter]) as folder:
        written = write_weights(layout, Edits(layout, read), dtype, folder, lambda done: None)
        companions(base, folder / MODEL, facts)
        write_json(folder / MODEL / RECORD, {})
        put(folder, out, written)
