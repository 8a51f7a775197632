"""What is measured on a GPU, and the same code in small for a CPU."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from transformers import CLIPVisionConfig

from benchmarks.peers import mix_batches
from benchmarks.train import Figure, Shape
from benchmarks.ways import Setting


@dataclass(frozen=True)
class Sizes:
    """A LLaVA and what of it is measured; `SMOKE` runs the same code on a CPU, to see that it runs."""

    device: str
    dtype: torch.dtype
    shape: Shape
    vision: CLIPVisionConfig
    scale: int
    """Lengths are the 665k mix's divided by this."""
    shortest: int
    row: int
    """Tokens of the row of G1 and G3."""
    matrix: int
    ranks: tuple[int, ...]
    rounds: int
    tower_tflop: float
    """Of an image: forward pass of the tower, forward and backward pass of the projector."""

    def setting(self, grouped: bool = False, micro: int = 8, checkpoint: int = 0, r: int = 16) -> Setting:
        """Two optimizer steps of 16 samples each."""
        batches = mix_batches(2, self.scale, self.shortest, grouped)
        return Setting(
            self.shape, self.vision, batches, micro, r, checkpoint, device=self.device, dtype=self.dtype, rounds=3
        )

    @property
    def low_memory(self) -> Setting:
        """One row of 2,048 tokens (in small: 64), 4-bit, blocks recomputed."""
        n = 2048 // self.scale
        batches = ((n // 3, n // 3, n - 2 * (n // 3)),)
        return replace(self.setting(checkpoint=1), batches=batches, quantised=True, rounds=2)


# CLIP ViT-L/14-336 and Mistral-7B
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
FULL = Sizes(
    device="cuda",
    dtype=torch.bfloat16,
    shape=Shape("mistral", 4096, 14336, 32, 32, 8, 32000, 4096),
    vision=CLIPVisionConfig(**CLIP_L, image_size=336, patch_size=14),
    scale=1,
    shortest=606,
    row=16384,
    matrix=8192,
    ranks=(16, 64, 128),
    rounds=5,
    tower_tflop=0.44,
)
CLIP_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMOKE = Sizes(
    device="cpu",
    dtype=torch.bfloat16,
    shape=Shape("mistral", 64, 128, 2, 4, 2, 512, 64),
    vision=CLIPVisionConfig(**CLIP_SMALL, image_size=28, patch_size=14),
    scale=32,
    shortest=12,
    row=256,
    matrix=64,
    ranks=(4,),
    rounds=1,
    tower_tflop=0.0,
)


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times of each way, each round running every way once; two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 2):
        for name, way in ways.items():
            wait()
            start = time.perf_counter()
            way()
            wait()
            taken[name].append(time.perf_counter() - start)
    return {name: times[2:] for name, times in taken.items()}


def wait() -> None:
    """Until the GPU has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median(name: str, rounds: Iterable[float], unit: str = "", goal: str = "", limit: str = "") -> Figure:
    """The median of `rounds`."""
    values = tuple(float(f"{value:.4g}") for value in rounds)
    return Figure(name, statistics.median(values), unit, values, goal, limit)
