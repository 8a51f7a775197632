"""The sidecar index of a shard: where each member of the tar lies."""

from dataclasses import dataclass
from typing import Any

from shards.errors import BadInput
from shards.images import MAX_IMAGE_BYTES
from shards.sample import IMAGE_EXTENSIONS, MAX_JSON_BYTES

_LIMITS = {"json": MAX_JSON_BYTES, **dict.fromkeys(IMAGE_EXTENSIONS, MAX_IMAGE_BYTES)}
# Room for headers, padding and long names between two members: what is read at once stays near their own size.
_HEADERS = 16 * 512
_MOST = 2**31


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One sample: extension → (offset, size) in bytes of each member's data; (width, height) of its image."""

    key: str
    members: dict[str, tuple[int, int]]
    image_size: tuple[int, int] | None
    questions: int

    @property
    def image_ext(self) -> str | None:
        """Extension of the image member, if the sample has one."""
        return next((ext for ext in self.members if ext != "json"), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "members": {ext: list(span) for ext, span in self.members.items()},
            "image_size": None if self.image_size is None else list(self.image_size),
            "questions": self.questions,
        }


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """NAME-000000.index.json."""

    shard: str
    bytes: int
    sha256: str
    samples: tuple[IndexEntry, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "shard": self.shard,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "samples": [entry.to_json() for entry in self.samples],
        }

    @classmethod
    def from_json(cls, obj: Any, at: str) -> "ShardIndex":
        """Parse an index; BadInput, starting with `at`, unless every span lies in the tar and under the size caps."""
        try:
            size = int(obj["bytes"])
            entries = tuple(_entry(item, size) for item in obj["samples"])
            return cls(str(obj["shard"]), size, str(obj["sha256"]), entries)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise BadInput(f"{at}: not a shard index ({error}); build the dataset again") from error


def _entry(obj: Any, tar_bytes: int) -> IndexEntry:
    members = {ext: _span(ext, span, tar_bytes) for ext, span in obj["members"].items()}
    if "json" not in members or len(members) > 2:
        raise ValueError("a sample has one json and at most one image")
    image_size = None if obj["image_size"] is None else (int(obj["image_size"][0]), int(obj["image_size"][1]))
    if (image_size is None) != (len(members) == 1):
        raise ValueError("image size and image member go together")
    questions = int(obj["questions"])
    if not 0 <= questions < _MOST or not all(0 < side < _MOST for side in image_size or ()):
        raise ValueError(f"{questions} questions or an image of {image_size} pixels")
    start, stop = min(offset for offset, _ in members.values()), max(offset + size for offset, size in members.values())
    if stop - start > sum(size for _, size in members.values()) + _HEADERS:
        raise ValueError("the members of a sample lie apart")
    key = str(obj["key"])
    if len(key) > 128 or not key.isascii() or not key.isprintable():
        raise ValueError(f"{key!r:.50} is no key")
    return IndexEntry(key, members, image_size, questions)


def _span(ext: str, span: Any, tar_bytes: int) -> tuple[int, int]:
    offset, size = int(span[0]), int(span[1])
    if ext not in _LIMITS or not 0 <= size <= _LIMITS[ext]:
        raise ValueError(f"member .{ext!s:.20} of {size} bytes")
    if offset < 512 or offset + size > tar_bytes:
        raise ValueError(f"a member at {offset}+{size} lies outside the tar")
    return offset, size
