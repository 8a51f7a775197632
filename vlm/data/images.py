"""Image bytes to the uint8 pixels that the vision tower's processor would make, normalised on the device."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.errors import BadInput
from shards.files import read_json
from shards.images import MAX_PIXELS, read_header

FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Pixels:
    """How a tower wants its images: `size` pixels square, mean and standard deviation per channel (0 to 1)."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> "Pixels":
        """Read from a model folder's `preprocessor_config.json`."""
        path = folder / "processor_config.json"
        config = read_json(path)["image_processor"] if path.exists() else read_json(folder / "preprocessor_config.json")
        return cls(config["crop_size"]["height"], tuple(config["image_mean"]), tuple(config["image_std"]))

    def decode(self, data: bytes) -> np.ndarray:
        """Bytes to uint8 (3, size, size): padded to a square with the mean colour, then resized, as LLaVA 1.5 does."""
        _, width, height = read_header(data)
        if max(width, height) ** 2 > 4 * MAX_PIXELS:
            raise BadInput(f"image of {width}x{height} pixels: too long to be made square")
        image = Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB")
        if image.width != image.height:
            side = max(image.size)
            square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in self.mean))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        if image.width != self.size:
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)

    def normalise(self, pixels_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 (B, 3, H, W) on any device to the tower's input of the same shape."""
        mean = torch.tensor(self.mean, device=pixels_BCHW.device)[None, :, None, None]
        std = torch.tensor(self.std, device=pixels_BCHW.device)[None, :, None, None]
        return ((pixels_BCHW.float() / 255 - mean) / std).to(dtype)


def flip_shift(pixels: np.ndarray, rng: np.random.Generator, reach: int) -> np.ndarray:
    """Mirror at random and shift by up to `reach` pixels, edges repeated; uint8 (3, H, W) in and out."""
    if rng.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1, :]
    dy, dx = rng.integers(0, 2 * reach + 1, size=2)
    height, width = pixels.shape[1:]
    padded = np.pad(pixels, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    return np.ascontiguousarray(padded[:, dy : dy + height, dx : dx + width])
