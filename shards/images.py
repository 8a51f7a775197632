"""Checks of image bytes before anything trusts them."""

import io

from PIL import Image

from shards.errors import BadInput

# A 260 KB PNG can decode to 700 MB without a word from Pillow, so the cap is ours and is read from the header.
MAX_PIXELS = 50_000_000
MAX_IMAGE_BYTES = 64 * 1024 * 1024

# A JPEG with several pictures calls itself MPO once opened.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def _open(data: bytes) -> Image.Image:
    if len(data) > MAX_IMAGE_BYTES:
        raise BadInput(f"image of {len(data)} bytes; at most {MAX_IMAGE_BYTES} are taken")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except Exception as error:  # hostile bytes raise nearly any type inside the decoders
        raise BadInput(f"not a JPEG, PNG or WebP image ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadInput(f"image of {image.width}x{image.height} pixels; at most {MAX_PIXELS} pixels are taken")
    return image


def read_header(data: bytes) -> tuple[str, int, int]:
    """(extension, width, height) from the header alone; BadInput when it is no image or too large."""
    image = _open(data)
    return _EXTENSIONS[image.format or ""], image.width, image.height


def check_image(data: bytes) -> tuple[str, int, int]:
    """(extension, width, height) of an image decoded to its last row; BadInput when it cannot be."""
    image = _open(data)
    try:
        image.load()
    except Exception as error:  # as above
        raise BadInput(f"image cannot be decoded ({error})") from error
    return _EXTENSIONS[image.format or ""], image.width, image.height
