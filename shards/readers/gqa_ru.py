"""GQA-ru: GQA in Russian as deepvk publishes it, Parquet tables of instructions and of images, joined on imageId."""

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.dialogue import Asked, Dialogues, as_object, refused, text_field
from shards.readers.gqa import gqa_question
from shards.readers.rows import parquet_rows
from shards.readers.spool import Spool

_SPLITS = ("train", "testdev")
_COLUMNS = ("id", "imageId", "question", "answer", "fullAnswer", "isBalanced", "groups", "types")


def _read(options: ReaderOptions) -> Iterator[Draft]:
    if options.split not in _SPLITS:
        raise BadInput(f"GQA-ru has no split {options.split!r:.50}; use one of {', '.join(_SPLITS)}")
    instructions, images = _tables(options)
    dialogues = Dialogues.of("gqa-ru", "ru", "word", options)
    numbers = count()
    with Spool() as spool:
        yield from _fill(spool, instructions)
        for place, row in parquet_rows(images, ("id", "image")):
            try:
                fields = as_object(row())
                image_id = text_field(fields, "id")
            except BadInput as error:
                yield refused(place, str(error), error.kind)
                continue
            group = [Asked.from_json(obj) for obj in spool.pop(image_id)]
            if group:
                yield from dialogues.of_image(numbers, group, partial(_image, fields.get("image")))
        for image_id, left in spool.groups():
            for asked in map(Asked.from_json, left):
                yield refused(asked.place, f"image {image_id!r:.100} is not in {images}", "image-missing")


def _tables(options: ReaderOptions) -> tuple[Path, Path]:
    if options.input is None:
        raise BadInput("reader gqa-ru: give the folder of the set, or its instructions and --images, with --input")
    if options.images is not None:
        return options.input, options.images
    root, split = options.input, options.split
    return root / f"{split}_balanced_instructions", root / f"{split}_balanced_images"


def _fill(spool: Spool, instructions: Path) -> Iterator[Draft]:
    """Put the questions into the spool by imageId; drafts of those that are rejected."""
    for place, row in parquet_rows(instructions, _COLUMNS):
        try:
            fields = as_object(row())
            asked = gqa_question(place, text_field(fields, "id"), fields)
        except BadInput as error:
            yield refused(place, str(error), error.kind)
        else:
            spool.add(asked.image_id, asked.to_json())


def _image(cell: Any) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise BadInput("the row of the image holds no picture", "image-missing")
    return data


GQA_RU = Reader(
    "gqa-ru",
    "https://huggingface.co/datasets/deepvk/GQA-ru",
    "Apache-2.0",
    ("ru",),
    _read,
    "--input: the folder from the Hub; or its table of instructions, and --images: its table of images",
    ("images", "lang", "merge", "format_prompts"),
)
