"""Images written anew: another format, a smaller side."""

import io
from dataclasses import dataclass
from typing import cast

from PIL import Image

from shards.errors import BadInput
from shards.images import check_image
from shards.sample import IMAGE_EXTENSIONS, ImageExt

_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
QUALITY = 90


@dataclass(frozen=True)
class Encoding:
    """What is done to images; by default nothing: their bytes are kept as they came."""

    format: str | None = None
    "jpg, png or webp: every image is written anew in it"
    quality: int = QUALITY
    "of JPEG and WebP written here, 1 to 100"
    max_side: int | None = None
    "pixels: an image with a longer side is scaled down to it, in its own format unless `format` names one"

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in IMAGE_EXTENSIONS:
            raise BadInput(f"--reencode {self.format!r:.50}: choose one of {', '.join(IMAGE_EXTENSIONS)}")
        if not 1 <= self.quality <= 100:
            raise BadInput(f"--quality is {self.quality}; 1 to 100 is wanted")
        if self.max_side is not None and self.max_side < 1:
            raise BadInput(f"--max-side is {self.max_side}; at least 1 pixel is wanted")
        if self.quality != QUALITY and self.keeps:
            raise BadInput("--quality is of images written anew; give --reencode or --max-side with it")

    @property
    def keeps(self) -> bool:
        """Whether all bytes are kept."""
        return self.format is None and self.max_side is None

    def apply(self, data: bytes) -> tuple[bytes, ImageExt]:
        """The image as it is to be stored, and its extension; BadInput when it cannot be decoded.

        What is written anew is RGB, without metadata, and not turned: pixels as training would have read them.
        """
        ext, width, height = check_image(data)
        small = self.max_side is None or max(width, height) <= self.max_side
        if self.format is None and small:
            return data, cast(ImageExt, ext)
        try:
            image = Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values())).convert("RGB")
        except Exception as error:  # hostile bytes raise nearly any type inside the decoders
            raise BadInput(f"image cannot be decoded ({error})", "image") from error
        if self.max_side is not None:
            image.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        image.info = {}
        target = self.format or ext
        buffer = io.BytesIO()
        try:
            image.save(buffer, _FORMATS[target], quality=self.quality)
        except (OSError, ValueError) as error:  # a side longer than the format can have
            size = f"{image.width}x{image.height}"
            raise BadInput(
                f"image of {size} cannot be written as {target} ({error}); give --max-side", "image"
            ) from error
        return buffer.getvalue(), cast(ImageExt, target)
