"""Readers of raw sets, by name."""

from shards.errors import BadInput
from shards.readers.base import Reader, ReaderOptions
from shards.readers.easy_vqa import EASY_VQA, EASY_VQA_CAPTIONS
from shards.readers.ours import JSONL

READERS: dict[str, Reader] = {reader.name: reader for reader in (EASY_VQA, EASY_VQA_CAPTIONS, JSONL)}


def find_reader(name: str) -> Reader:
    """The reader of that name, or BadInput."""
    if name not in READERS:
        raise BadInput(f"--reader {name!r:.100}: unknown; choose {', '.join(READERS)}")
    return READERS[name]


__all__ = ["READERS", "Reader", "ReaderOptions", "find_reader"]
