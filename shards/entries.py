"""The index entries of many samples, kept in 37 bytes each and their key: as objects they take ten times that."""

from array import array
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import overload

from shards.index import IndexEntry
from shards.sample import IMAGE_EXTENSIONS

# JSON and image, offset and size each; extension of the image, its width and height; questions
_RECORD = Struct("<qiqibIIi")
_NO_IMAGE = (0, 0, -1, 0, 0)


class Entries(Sequence[IndexEntry]):
    """Entries in stored order; each is made when it is asked for. Nothing but `extend` changes them."""

    def __init__(self) -> None:
        self._keys, self._ends, self._records = bytearray(), array("q", [0]), bytearray()

    def extend(self, entries: Iterable[IndexEntry]) -> None:
        """Append entries; their numbers are within the limits of `ShardIndex.from_json`."""
        for entry in entries:
            ext = entry.image_ext
            image = _NO_IMAGE
            if ext is not None and entry.image_size is not None:
                image = (*entry.members[ext], IMAGE_EXTENSIONS.index(ext), *entry.image_size)
            self._records += _RECORD.pack(*entry.members["json"], *image, entry.questions)
            self._keys += entry.key.encode("ascii")
            self._ends.append(len(self._keys))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def key(self, i: int) -> str:
        """Key of entry `i`, 0 ≤ i < len."""
        return self._keys[self._ends[i] : self._ends[i + 1]].decode("ascii")

    @overload
    def __getitem__(self, i: int) -> IndexEntry: ...
    @overload
    def __getitem__(self, i: slice) -> list[IndexEntry]: ...
    def __getitem__(self, i: int | slice) -> IndexEntry | list[IndexEntry]:
        if isinstance(i, slice):
            return [self[place] for place in range(*i.indices(len(self)))]
        place = i + len(self) if i < 0 else i
        if not 0 <= place < len(self):
            raise IndexError(f"entry {i} of {len(self)}")
        at, size, image_at, image_size, ext, width, height, questions = _RECORD.unpack_from(
            self._records, place * _RECORD.size
        )
        members = {"json": (at, size)}
        if ext < 0:
            return IndexEntry(self.key(place), members, None, questions)
        members = {IMAGE_EXTENSIONS[ext]: (image_at, image_size), **members}
        return IndexEntry(self.key(place), members, (width, height), questions)
