"""Our own JSONL: a line holds the JSON of a sample, its "key" and, if it has one, the path of its "image"."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import parse_json
from shards.images import MAX_IMAGE_BYTES, read_header
from shards.readers.base import Reader, ReaderOptions
from shards.sample import MAX_JSON_BYTES, Sample


def _read(options: ReaderOptions) -> Iterator[Sample]:
    if options.input is None:
        raise BadInput("reader jsonl: give the file with --input")
    if options.balance:
        raise BadInput("reader jsonl: --balance is for easy-vqa")
    return islice(_read_lines(options.input, options.images), options.limit)


def _read_lines(path: Path, images: Path | None) -> Iterator[Sample]:
    try:
        handle = open(path, "rb")  # noqa: SIM115  closed by the with below
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    with handle:
        for number, line in enumerate(iter(lambda: handle.readline(MAX_JSON_BYTES + 1), b""), 1):
            where = f"{path}:{number}"
            if len(line) > MAX_JSON_BYTES:
                raise BadInput(f"{where}: a line longer than {MAX_JSON_BYTES} bytes")
            obj = parse_json(line, where)
            try:
                sample = _sample(obj, images)
            except BadInput as error:
                raise BadInput(f"{where}: {error}") from error
            yield sample


def _sample(obj: Any, images: Path | None) -> Sample:
    if not isinstance(obj, dict) or not isinstance(obj.get("key"), str):
        raise BadInput('an object with a text "key" is wanted')
    fields = {name: value for name, value in obj.items() if name not in ("key", "image")}
    if "image" not in obj:
        return Sample.from_json(obj["key"], fields)
    data = _image(obj["image"], images)
    return Sample.from_json(obj["key"], fields, data, read_header(data)[0])


def _image(name: Any, images: Path | None) -> bytes:
    if images is None:
        raise BadInput("the sample names an image; give its folder with --images")
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadInput('"image" should be a path relative to --images')
    root = images.resolve()
    try:
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(root):
            raise BadInput(f"the image {name!r:.200} lies outside --images {images}")
        if not path.is_file():
            raise BadInput(f"the image {name!r:.200} is not in --images {images}")
        with open(path, "rb") as handle:
            return handle.read(MAX_IMAGE_BYTES + 1)  # one byte over the cap is refused as too large later
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"the image {name!r:.200} cannot be read ({error})") from error


JSONL = Reader("jsonl", "own JSONL", "as stated by its owner", ("any",), _read)
