"""How fast a training is against what its GPUs can do."""

import resource
from dataclasses import dataclass

import torch

# dense bfloat16/float16 TFLOP/s from the vendor's data sheets; the first name found in the device's is taken
PEAKS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
}


def peak_tflops(dtype: str) -> float | None:
    """What this process's GPU can do in a 16-bit type; None without one, for float32, or a GPU not in the table."""
    if not torch.cuda.is_available() or dtype == "float32":
        return None
    name = torch.cuda.get_device_name()
    words = set(name.replace("-", " ").split())
    return next((peak for known, peak in PEAKS.items() if set(known.split()) <= words), None)


@dataclass(frozen=True)
class Work:
    """Mean TFLOP of a sample (`vlm estimate`'s formula), of which some are done twice where blocks are recomputed."""

    tflop: float
    recomputed: float
    peak: float

    def utilisation(self, samples: int, seconds: float, ranks: int) -> dict[str, float]:
        """`mfu` counts what the model needs, `hfu` what the GPU did; shares of the peak."""
        able = seconds * ranks * self.peak
        return {
            "mfu": round(samples * self.tflop / able, 4),
            "hfu": round(samples * (self.tflop + self.recomputed) / able, 4),
        }


def peak_memory() -> int:
    """Most bytes this rank has held so far: of the GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
