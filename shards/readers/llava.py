"""LLaVA's JSON and the sets written like it: llava_instruct_150k, the 665k mix, the 558k captions, LLaVA-Instruct-ru.

A row is `{"id", "image"?, "conversations": [{"from": "human"|"gpt", "value"}]}`. As in LLaVA's own training an answer
before the first question is dropped. Unlike there, `<image>` stays where it stands in its turn, and a row whose
markers and images do not agree is rejected.
"""

from collections.abc import Iterator
from functools import partial

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.conversations import Conversations, one_image, read_dialogue
from shards.readers.dialogue import as_object
from shards.readers.images import ImageFolder
from shards.readers.llava_images import load_image
from shards.readers.rows import Row, any_rows
from shards.sample import Sample

_COLUMNS = ("id", "type", "image", "images", "conversations")


def _read(name: str, lang: str, unmarked: bool, options: ReaderOptions) -> Iterator[Draft]:
    if options.input is None:
        raise BadInput(f"reader {name}: give the JSON, JSON lines or Parquet file with --input")
    conversations = Conversations.of(name, lang, options)
    # rows of text alone need no folder
    folder = None if options.images is None else ImageFolder.of(options)
    for number, (place, row) in enumerate(any_rows(options.input, _COLUMNS)):
        yield Draft(place, partial(_sample, conversations, folder, unmarked, number, row))


def _sample(conversations: Conversations, folder: ImageFolder | None, unmarked: bool, number: int, row: Row) -> Sample:
    fields = as_object(row())
    cell = one_image(fields)
    messages = read_dialogue(fields.get("conversations"), "conversations", cell is not None, unmarked)
    return conversations.sample(number, fields, messages, None if cell is None else load_image(cell, folder))


_TAKES = (
    "--input: JSON, JSON lines or Parquet (file or folder); --images: the folder that holds coco, gqa, vg and others"
)

LLAVA = Reader(
    "llava",
    "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    "CC-BY-4.0, within OpenAI's terms of use",
    ("en",),
    partial(_read, "llava", "en", False),
    _TAKES,
    ("images", "lang", "follow_links"),
)
LLAVA_INSTRUCT_RU = Reader(
    "llava-instruct-ru",
    "https://huggingface.co/datasets/deepvk/LLaVA-Instruct-ru",
    "Apache-2.0",
    ("ru",),
    # its validation split has images and no marker
    partial(_read, "llava-instruct-ru", "ru", True),
    "--input: the set's JSON or Parquet (file or folder); --images: COCO's train2014 and val2014, or train2017",
    ("images", "lang", "follow_links"),
)
