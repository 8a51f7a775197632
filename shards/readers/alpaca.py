"""Text instructions in the form of Alpaca and of LLaMA-Factory.

A row is `{"instruction", "input"?, "output", "system"?, "history"?}`; `history` is a list of earlier pairs of question
and answer. The question is the instruction, and the input on the next line.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from shards.errors import BadInput
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.conversations import Conversations, one_image, place_image, read_message, with_system
from shards.readers.dialogue import as_object, text_field
from shards.readers.rows import Row, any_rows
from shards.sample import Message, Sample, check_text


def alpaca_messages(fields: Mapping[str, Any]) -> list[Message]:
    """The messages of a row."""
    question, answer = text_field(dict(fields), "instruction"), text_field(dict(fields), "output")
    given = fields.get("input")
    if given is not None and given != "":
        check_text(given, "field 'input'")
        question = f"{question}\n{given}"
    messages: list[Message] = []
    for at, asked, answered in [*_history(fields.get("history")), ("instruction", question, answer)]:
        messages += [read_message("user", asked, at), read_message("assistant", answered, at)]
    return with_system(fields, place_image(messages, "instruction", False))


def _history(value: Any) -> list[tuple[str, Any, Any]]:
    """(place, question, answer) of every earlier turn."""
    if value is None:
        return []
    pairs = value if isinstance(value, list) else [value]
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadInput(f"history[{i}]: a question and an answer are wanted, not {pair!r:.50}")
    return [(f"history[{i}]", asked, answered) for i, (asked, answered) in enumerate(pairs)]


def _read(options: ReaderOptions) -> Iterator[Draft]:
    if options.input is None:
        raise BadInput("reader alpaca: give the JSON, JSON lines or Parquet file with --input")
    conversations = Conversations.of("alpaca", "en", options)
    for number, (place, row) in enumerate(any_rows(options.input)):
        yield Draft(place, partial(_sample, conversations, number, row))


def _sample(conversations: Conversations, number: int, row: Row) -> Sample:
    fields = as_object(row())
    if one_image(fields) is not None:
        raise BadInput("the row names an image; this reader takes text alone")
    return conversations.sample(number, fields, alpaca_messages(fields))


ALPACA = Reader(
    "alpaca",
    "text instructions in the form of Alpaca",
    "as stated by its owner",
    ("en",),
    _read,
    "--input: JSON, JSON lines or Parquet (file or folder) of instruction, input and output",
    ("lang",),
)
