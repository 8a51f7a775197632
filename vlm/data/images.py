"""Image bytes to the uint8 pixels that the vision tower's processor would make, normalised on the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.errors import BadInput
from shards.files import read_json
from shards.images import MAX_PIXELS, read_header
from vlm.data.decode import decode_rgb


@dataclass(frozen=True)
class Pixels:
    """How a tower wants its images: `size` pixels square, mean and standard deviation per channel (0 to 1).

    With `tiles` above 0 an image is given as LLaVA-1.5-HD does: the whole made square and scaled down, then up to so
    many tiles of the tower's size.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tiles: int = 0

    @classmethod
    def of(cls, folder: Path) -> "Pixels":
        """Read from a model folder's `processor_config.json` (or `preprocessor_config.json`) and `assembly.json`."""
        path, assembly = folder / "processor_config.json", folder / "assembly.json"
        config = read_json(path)["image_processor"] if path.exists() else read_json(folder / "preprocessor_config.json")
        tiles = read_json(assembly).get("tiles", 0) if assembly.exists() else 0
        return cls(config["crop_size"]["height"], tuple(config["image_mean"]), tuple(config["image_std"]), tiles)

    def decode(self, data: bytes) -> np.ndarray:
        """Bytes to uint8 (3, size, size): padded to a square with the mean colour, then resized, as LLaVA 1.5 does."""
        return self.square(self._open(data))

    def views(self, image: bytes | Image.Image) -> np.ndarray:
        """What the tower gets for an image, uint8 (n, 3, size, size): the whole, then its tiles row by row.

        n is `count` of the image's size.
        """
        if isinstance(image, bytes):
            opened = self._open(image)
        else:
            self._refuse_long(*image.size)
            opened = image.convert("RGB")
        return np.stack([self.square(opened), *self._cut(opened)])

    def square(self, image: Image.Image) -> np.ndarray:
        """As `decode`, of an image that is open already."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        if image.width != image.height:
            side = max(image.size)
            image = self._padded(image, side, side)
        if image.width != self.size:
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)

    def count(self, width: int, height: int) -> int:
        """How many images the tower gets for one of this size."""
        columns, rows = self.grid(width, height)
        return 1 + (columns * rows if columns * rows > 1 else 0)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) of tiles that keep most of the image's pixels, and among those waste least; (1, 1) is none.

        Source: `select_best_resolution` of LLaVA-NeXT, which gave LLaVA-1.5-HD its grids.
        """

        def kept(columns: int, rows: int) -> tuple[int, int]:
            w, h = self._fitted(width, height, columns, rows)
            return min(w * h, width * height), -columns * rows

        most = max(1, self.tiles)
        grids = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1)]
        return max(grids, key=lambda grid: kept(*grid))

    def _fitted(self, width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
        """Size of the image once it fills the grid one way, in whole numbers."""
        w, h = columns * self.size, rows * self.size
        if w * height <= h * width:
            return w, max(1, height * w // width)
        return max(1, width * h // height), h

    def _cut(self, image: Image.Image) -> Iterator[np.ndarray]:
        columns, rows = self.grid(*image.size)
        if columns * rows == 1:
            return
        fitted = image.resize(self._fitted(*image.size, columns, rows), Image.Resampling.BICUBIC)
        canvas = np.asarray(self._padded(fitted, columns * self.size, rows * self.size)).transpose(2, 0, 1)
        for row in range(rows):
            for column in range(columns):
                top, left = row * self.size, column * self.size
                yield canvas[:, top : top + self.size, left : left + self.size]

    def _padded(self, image: Image.Image, width: int, height: int) -> Image.Image:
        canvas = Image.new("RGB", (width, height), tuple(int(m * 255) for m in self.mean))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return canvas

    def _open(self, data: bytes) -> Image.Image:
        _, width, height = read_header(data)
        self._refuse_long(width, height)
        try:
            return decode_rgb(data)
        except Exception as error:  # hostile bytes raise nearly any type inside the decoders
            raise BadInput(f"image cannot be decoded ({error})", "image") from error

    def _refuse_long(self, width: int, height: int) -> None:
        if max(width, height) ** 2 > 4 * MAX_PIXELS:
            raise BadInput(f"image of {width}x{height} pixels: too long to be made square")

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
