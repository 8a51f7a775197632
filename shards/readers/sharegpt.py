"""Text dialogues in the form of ShareGPT or of OpenAI's chat messages.

A row is `{"conversations": [{"from", "value"}]}` or `{"messages": [{"role", "content"}]}`, with LLaMA-Factory's
"system" beside it where there is one.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.conversations import Conversations, one_image, read_dialogue, with_system
from shards.readers.dialogue import as_object
from shards.readers.rows import Row, any_rows
from shards.sample import Message, Sample

_LISTS = ("conversations", "messages")


def sharegpt_messages(fields: Mapping[str, Any], image: bool = False, unmarked: bool = False) -> list[Message]:
    """The messages of a row; its "system" comes first unless the dialogue has its own."""
    given = [name for name in _LISTS if fields.get(name) is not None]
    if len(given) != 1:
        raise BadInput("one of the fields 'conversations' and 'messages' is wanted" + (", not both" if given else ""))
    if fields.get("tools"):
        raise BadInput("field 'tools': dialogues with tools are not taken")
    messages = read_dialogue(fields[given[0]], given[0], image, unmarked)
    return with_system(fields, messages)


def _read(options: ReaderOptions) -> Iterator[Draft]:
    if options.input is None:
        raise BadInput("reader sharegpt: give the JSON, JSON lines or Parquet file with --input")
    conversations = Conversations.of("sharegpt", "en", options)
    for number, (place, row) in enumerate(any_rows(options.input)):
        yield Draft(place, partial(_sample, conversations, number, row))


def _sample(conversations: Conversations, number: int, row: Row) -> Sample:
    fields = as_object(row())
    if one_image(fields) is not None:
        raise BadInput("the row names an image; use --reader llava")
    return conversations.sample(number, fields, sharegpt_messages(fields))


SHAREGPT = Reader(
    "sharegpt",
    "text dialogues in the form of ShareGPT",
    "as stated by its owner",
    ("en",),
    _read,
    "--input: JSON, JSON lines or Parquet (file or folder) of conversations or messages without images",
    ("lang",),
)
