"""What a reader of raw sets is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.sample import Sample


@dataclass(frozen=True)
class ReaderOptions:
    """What to read."""

    input: Path | None = None
    "file or folder of the raw set; some readers have one installed"
    images: Path | None = None
    "folder that relative image paths start from"
    split: str = "train"
    "part of the raw set"
    limit: int | None = None
    "stop after this many samples"
    balance: bool = False
    "thin the training turns until question form alone says nothing about the answer"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise BadInput(f"limit is {self.limit}; at least 1 sample is wanted")

    def to_json(self) -> dict[str, Any]:
        """Options as recorded; of paths the last name alone, so that a build does not depend on where it ran."""
        return {
            "input": self.input.name if self.input else None,
            "images": self.images.name if self.images else None,
            "split": self.split,
            "limit": self.limit,
            "balance": self.balance,
        }


@dataclass(frozen=True)
class Reader:
    """A raw set: `read` yields its samples in a fixed order and raises BadInput on bad raw data."""

    name: str
    source: str
    licence: str
    languages: tuple[str, ...]
    read: Callable[[ReaderOptions], Iterator[Sample]]
