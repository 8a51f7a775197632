"""Samples that could not be read: left out of their step on all ranks alike, counted, and not too many."""

from dataclasses import replace
from math import ceil

import torch
import torch.distributed as dist

from shards.errors import BadInput
from vlm.data.step import Skipped, Step


class Skips:
    """Agrees with all ranks on what a step left out.

    `share` of the run's `samples` may be left out, and the first one always unless it is 0; `count` is how many a
    resumed run had left out before.
    """

    def __init__(self, share: float, samples: int, count: int = 0) -> None:
        self.limit, self.share, self.count = ceil(share * samples), share, count

    def agree(self, step: Step) -> Step:
        """The step as all ranks see it: `skipped` of all of them, and neither samples nor tokens of those left out.

        Every rank calls this once a step. Raises BadInput, on all ranks alike, when more than the limit are left out.
        """
        skipped = _gather(step.skipped)
        if not skipped:
            return step
        self.count += len(skipped)
        if self.count > self.limit:
            raise BadInput(
                f"{self.count} training samples cannot be read, more than data.max_skipped={self.share} allows "
                f"({self.limit}); the last: {skipped[-1].reason}; run `vlm shards verify`"
            )
        gone = {s.sample for s in skipped}
        return replace(
            step,
            skipped=skipped,
            samples=[sample for sample in step.samples if sample not in gone],
            tokens=step.tokens - sum(s.tokens for s in skipped),
            supervised=step.supervised - sum(s.supervised for s in skipped),
        )


def _gather(own: tuple[Skipped, ...]) -> tuple[Skipped, ...]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor([len(own)], device=device)
    dist.all_reduce(count)
    # objects are gathered by several collectives, so only when there are any
    if not int(count):
        return ()
    found: list[tuple[Skipped, ...]] = [()] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return tuple(sorted((s for each in found for s in each), key=lambda s: s.sample))
