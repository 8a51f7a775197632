"""Our own JSONL: a line holds the JSON of a sample, its "key" and, if it has one, the path of its "image"."""

from collections.abc import Iterator
from functools import partial

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.images import ImageFolder, image_extension
from shards.readers.rows import Row, json_rows
from shards.sample import Sample


def _read(options: ReaderOptions) -> Iterator[Draft]:
    if options.input is None:
        raise BadInput("reader jsonl: give the file with --input")
    folder = ImageFolder.of(options) if options.images is not None else None
    return (Draft(place, partial(_sample, row, folder)) for place, row in json_rows(options.input))


def _sample(row: Row, folder: ImageFolder | None) -> Sample:
    obj = row()
    if not isinstance(obj, dict) or not isinstance(obj.get("key"), str):
        raise BadInput('an object with a text "key" is wanted')
    fields = {name: value for name, value in obj.items() if name not in ("key", "image")}
    if "image" not in obj:
        return Sample.from_json(obj["key"], fields)
    if folder is None:
        raise BadInput("the sample names an image; give its folder with --images", "image-missing")
    data = folder.read(obj["image"])
    return Sample.from_json(obj["key"], fields, data, image_extension(data))


JSONL = Reader(
    "jsonl",
    "own JSONL",
    "as stated by its owner",
    ("any",),
    _read,
    "--input: the file, a sample a line; --images: the folder that their paths start from",
    ("images", "follow_links"),
)
