"""How a dataset is written."""

from dataclasses import dataclass, field
from pathlib import Path

from shards.build.encoding import Encoding
from shards.errors import BadInput


@dataclass(frozen=True)
class BuildSettings:
    """Limits of a build and what it does to images; a value out of range is BadInput."""

    bytes_per_shard: int = 2**30
    "a tar is not larger, unless one sample alone is"
    max_rejected: float = 0.01
    "largest share of the rows that may be rejected, 0 to 1"
    encoding: Encoding = field(default_factory=Encoding)
    "what is done to the images"
    decode: bool = False
    "decode every image to its end, not only check its structure"
    tokenizer: Path | None = None
    "tokenizer.json, or a folder that holds one"
    max_tokens: int | None = None
    "a sample whose messages have more tokens of text is rejected"
    workers: int | None = None
    "threads that prepare samples, by default one a core; the result does not depend on them"

    def __post_init__(self) -> None:
        if self.bytes_per_shard < 1:
            raise BadInput(f"--bytes-per-shard is {self.bytes_per_shard}; at least 1 is wanted")
        if not 0 <= self.max_rejected <= 1:
            raise BadInput(f"--max-rejected is {self.max_rejected}; a share from 0 to 1 is wanted")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput(f"--max-tokens is {self.max_tokens}; at least 1 is wanted")
        if (self.tokenizer is None) != (self.max_tokens is None):
            raise BadInput("--tokenizer and --max-tokens go together; give both or neither")
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"--workers is {self.workers}; at least 1 is wanted")
