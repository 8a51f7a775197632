"""Image bytes to RGB pixels: libjpeg-turbo without detours where `simplejpeg` is installed, Pillow for all else."""

import io
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
_TURBO = import_module("simplejpeg") if find_spec("simplejpeg") else None


def decode_rgb(data: bytes) -> Image.Image:
    """The image as RGB, of the same pixels by either decoder: accurate DCT, smooth upsampling, no scaling.

    Raises whatever Pillow raises on bytes that it cannot read; check them with `shards.images` first.
    """
    if _TURBO and data.startswith(b"\xff\xd8"):
        image = _turbo(data)
        if image is not None:
            return image
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _turbo(data: bytes) -> Image.Image | None:
    assert _TURBO is not None
    try:
        # of CMYK the two make different colours, and what is damaged is Pillow's to judge
        if _TURBO.decode_jpeg_header(data)[2] not in ("YCbCr", "Gray"):
            return None
        return Image.fromarray(_TURBO.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True))
    except ValueError:
        return None
