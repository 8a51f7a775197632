"""Checks of image bytes before anything trusts them."""

import io
import re
import warnings
import zlib

from PIL import Image

from shards.errors import BadInput

# A 260 KB PNG can decode to 700 MB without a word from Pillow, so the cap is ours and is read from the header.
MAX_PIXELS = 50_000_000
MAX_IMAGE_BYTES = 64 * 1024 * 1024
# Pillow walks the parts one by one in Python: millions of empty ones would keep it busy for a minute.
_MAX_PARTS = 65_536

# A JPEG with several pictures calls itself MPO once opened.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_DHT, _DQT, _SOS = 0xC4, 0xDB, 0xDA
# Baseline, extended and progressive Huffman: what every decoder reads.
_FRAMES = {0xC0, 0xC1, 0xC2}
# Segments that may stand before the first scan, and those among them that are usual there.
_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE} - {0xC8}
_USUAL = {*_FRAMES, _DHT, _DQT, 0xDD, *range(0xE0, 0xF0), 0xFE}
# Decoders pass over stray bytes and fill bytes before a marker; so do we, over a few.
_MARKER = re.compile(rb"[^\xff]{0,1024}\xff{1,1024}([\x01-\xfe])(\x00[\x02-\xff]|[^\x00].)", re.DOTALL)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# What is odd in an image is ours to judge and name: Pillow's remarks would only fill the terminal. Between its own two
# caps it would say so and go on; our cap is lower and answers for itself.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def read_header(data: bytes) -> tuple[str, int, int]:
    """(extension, width, height) without decoding; BadInput of kind "image" when it is no image or too large."""
    image, _ = _open(data)
    return _EXTENSIONS[image.format or ""], image.width, image.height


def check_image(data: bytes, decode: bool = False) -> tuple[str, int, int]:
    """(extension, width, height) of a whole image; BadInput of kind "image" when it is not, or is too large.

    The structure proves it whole: the segments of a JPEG up to its scan and its end marker, every chunk of a PNG
    against its checksum, the length of a WebP. What is unusual is decoded, and with `decode` everything is, which
    also finds damage inside a JPEG's tables. Of an animation the first picture is taken, as readers of shards do.
    """
    image, whole = _open(data)
    if decode or not whole:
        try:
            image.load()
        except Exception as error:  # hostile bytes raise nearly any type inside the decoders
            raise BadInput(f"image cannot be decoded ({error})", "image") from error
    return _EXTENSIONS[image.format or ""], image.width, image.height


def _open(data: bytes) -> tuple[Image.Image, bool]:
    """The image with its header read, and whether its structure proves it whole."""
    if len(data) > MAX_IMAGE_BYTES:
        raise BadInput(f"image of {len(data)} bytes; at most {MAX_IMAGE_BYTES} are taken", "image")
    # Before Pillow, because it overlooks some damage and has no cap on parts.
    whole = _is_whole(data)
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput(f"image of too many pixels; at most {MAX_PIXELS} are taken", "image") from error
    except Exception as error:  # as above
        raise BadInput("not a JPEG, PNG or WebP image that can be read", "image") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise BadInput(f"image of {size} pixels; at most {MAX_PIXELS} are taken", "image")
    return image, whole


def _is_whole(data: bytes) -> bool:
    """True when nothing is missing and nothing unusual is there; BadInput on sure damage."""
    if data.startswith(_SOI):
        return _jpeg_is_whole(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png_is_whole(data)
    return data.startswith(b"RIFF") and _webp_is_whole(data)


def _jpeg_is_whole(data: bytes) -> bool:
    """True when usual segments lead to the first scan and an end marker ends the bytes; BadInput without a scan.

    A scan cannot contain that marker, so no part of a picture cut short ends with it.
    """
    seen: list[int] = []
    at, stray = len(_SOI), 0
    while (found := _MARKER.match(data, at)) and found[1][0] in _SEGMENTS and stray < _MAX_PARTS:
        kind, length = found[1][0], int.from_bytes(found[2])
        stray += found.start(1) - 1 - at
        at = found.start(2) + length
        if kind == _SOS:
            usual = not stray and _USUAL.issuperset(seen) and _DQT in seen and _DHT in seen
            frames = sum(kind in _FRAMES for kind in seen)
            return usual and frames == 1 and at + len(_EOI) <= len(data) and data.endswith(_EOI)
        _count(seen)
        seen.append(kind)
    raise BadInput("not a JPEG that can be read: its segments lead to no picture", "image")


def _png_is_whole(data: bytes) -> bool:
    """True when sound chunks from IHDR to IEND, pixels among them, fill the bytes; BadInput on damage."""
    view, at, kind = memoryview(data), len(_PNG_SIGNATURE), b""
    seen: list[bytes] = []
    while kind != b"IEND":
        length, kind = int.from_bytes(view[at : at + 4]), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise BadInput("image is truncated: its last chunk is missing", "image")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise BadInput(f"image is damaged: the checksum of its chunk at byte {at} differs", "image")
        _count(seen)
        seen.append(kind)
        at = end + 4
    return at == len(data) and seen[0] == b"IHDR" and b"IDAT" in seen


def _webp_is_whole(data: bytes) -> bool:
    """True when the bytes are as many as the header says, false when there are more; BadInput when fewer.

    Pillow walks the chunks in between when it opens the image.
    """
    length = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < length:
        raise BadInput(f"image is truncated: {len(data)} of {length} bytes", "image")
    return len(data) == length


def _count(seen: list[int] | list[bytes]) -> None:
    if len(seen) == _MAX_PARTS:
        raise BadInput(f"image of more than {_MAX_PARTS} parts", "image")
