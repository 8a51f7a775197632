"""The loss on held-out shards, over all ranks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.loader import DataConfig, Loader, Source
from vlm.data.plan import Plan
from vlm.data.skips import Skips
from vlm.engine import Engine, all_reduce_sum


@dataclass(kw_only=True)
class HeldoutConfig:
    """Section `heldout` of a recipe: shards that are never trained on."""

    data: str = ""
    """Folder of the held-out shards; empty for none."""
    every: int = 0
    """Optimizer steps between two evaluations of the loss; 0 takes `checkpoint.every`."""
    batches: int = 0
    """Only the first so many global batches; 0 takes all."""

    def __post_init__(self) -> None:
        if min(self.every, self.batches) < 0:
            raise BadInput("heldout.every and heldout.batches must be at least 0")


class Heldout:
    """The mean loss of a supervised token of the held-out samples, every time on the same ones."""

    def __init__(self, config: HeldoutConfig, data: DataConfig, tokeniser: Tokeniser, pixels: Pixels) -> None:
        trained = [data.train] if data.train else [entry.path for entry in data.mix]
        if Path(config.data).resolve() in [Path(path).resolve() for path in trained]:
            raise BadInput(f"heldout.data: {config.data} is trained on; hold out other shards")
        self.config = config
        self.source = Source(replace(data, train=config.data, mix=[], shift=0), tokeniser, pixels, 0)
        sizes = tuple(ShardDataset.open(Path(config.data)).shard_sizes)
        self.plan = Plan(sizes, data.batch_size, 1.0, 0)

    def loss(self, engine: Engine, rank: int, ranks: int, must_stop: Callable[[], bool]) -> float | None:
        """Collective. None as soon as `must_stop`, asked at every micro-batch, says so on all ranks."""
        end = min(self.plan.steps, self.config.batches or self.plan.steps)
        total, supervised = 0.0, 0
        skips = Skips(self.source.config.max_skipped, self.plan.samples)
        engine.ds.eval()
        try:
            with torch.no_grad():
                loader = Loader(self.source, self.plan, rank, ranks, device=engine.device)
                for step in map(skips.agree, loader.steps(0, end)):
                    for micro_batch in step.micro_batches:
                        total += float(engine.ds(micro_batch.to(engine.device)))
                        if must_stop():
                            return None
                    supervised += step.supervised
        finally:
            engine.ds.train()
        return all_reduce_sum(total) / max(supervised, 1)
