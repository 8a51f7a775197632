"""Where the images of LLaVA's sets lie: names differ between releases of COCO, Visual Genome and OCR-VQA."""

import re
from pathlib import PurePosixPath
from typing import Any

from shards.errors import BadInput
from shards.readers.images import ImageFolder, from_cell

_COCO = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})")
# train2017 holds what 2014 had in train and most of val, under the same numbers
_COCO_NAMES = (
    "coco/train2017/{}.jpg",
    "coco/val2017/{}.jpg",
    "coco/train2014/COCO_train2014_{}.jpg",
    "coco/val2014/COCO_val2014_{}.jpg",
)
_VISUAL_GENOME = {"VG_100K": "VG_100K_2", "VG_100K_2": "VG_100K"}
# LLaVA names all files of OCR-VQA .jpg; the download has some as .gif and .png
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_GIF = (b"GIF87a", b"GIF89a")


def alternatives(name: str) -> tuple[str, ...]:
    """Names that the image may have on disk, `name` first; those without their leading folders are ImageFolder's."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return (name,)
    names = [name]
    if coco := _COCO.fullmatch(path.stem):
        names += [place.format(coco.group(1)) for place in _COCO_NAMES]
    if other := _VISUAL_GENOME.get(path.parent.name):
        names.append(str(path.parent.with_name(other) / path.name))
    names += [str(path.with_suffix(suffix)) for suffix in _SUFFIXES]
    return tuple(dict.fromkeys(names))


def load_image(cell: Any, folder: ImageFolder | None) -> bytes:
    """Bytes of the image that a row names or holds; BadInput when it is missing or a GIF."""
    if isinstance(cell, dict) and cell.get("bytes") is None:
        cell = cell.get("path")
    image = _find(cell, folder) if isinstance(cell, str) and folder is not None else from_cell(cell, folder)
    if image is None:
        raise BadInput("the row has no image", "image-missing")
    if image[:6] in _GIF:
        raise BadInput("the image is a gif; save it as PNG or JPEG", "image")
    return image


def _find(name: str, folder: ImageFolder) -> bytes:
    try:
        return folder.read(name)
    except BadInput:
        for other in alternatives(name)[1:]:
            try:
                return folder.read(other)
            except BadInput:
                continue
        raise
