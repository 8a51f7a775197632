"""A dataset folder, opened by its index; samples are read by offset."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from shards.entries import Entries
from shards.errors import BadInput
from shards.files import local_folder, read_json, sha256_file
from shards.index import ShardIndex
from shards.info import DATASET_FILE, DatasetInfo, FileInfo, ShardInfo, read_info
from shards.sample import Sample
from shards.tar import read_sample, reader_of

# Shards are visited in windows, so few handles serve; a large dataset has more shards than a process may open.
_OPEN_FILES = 32


def read_index(folder: Path, shard: ShardInfo) -> ShardIndex:
    """The index of a shard, checked against dataset.json; BadInput names the file."""
    path = folder / shard.index.file
    if not path.is_file():
        raise BadInput(f"{path}: missing; build the dataset again")
    # A sample takes far more of its tar than of its index, so the memory that an index may claim is bounded.
    if shard.index.bytes > shard.tar.bytes:
        raise BadInput(f"{path}: larger than its tar; build the dataset again")
    if path.stat().st_size != shard.index.bytes or sha256_file(path) != shard.index.sha256:
        raise BadInput(f"{path}: differs from its digest in {DATASET_FILE}; build the dataset again")
    index = ShardIndex.from_json(read_json(path, max_bytes=shard.index.bytes), str(path))
    if (index.shard, index.bytes, index.sha256) != (shard.tar.file, shard.tar.bytes, shard.tar.sha256):
        raise BadInput(f"{path}: belongs to another tar than {shard.tar.file}; build the dataset again")
    if len(index.samples) != shard.samples:
        raise BadInput(f"{path}: lists {len(index.samples)} samples and {DATASET_FILE} {shard.samples}")
    return index


def check_size(folder: Path, file: FileInfo) -> None:
    """BadInput, naming the file, when it is missing or its size is not the recorded one."""
    path = folder / file.file
    if not path.is_file():
        raise BadInput(f"{path}: missing; build the dataset again")
    size = path.stat().st_size
    if size != file.bytes:
        what = "truncated" if size < file.bytes else "something was appended"
        raise BadInput(f"{path}: {size} bytes instead of {file.bytes}: {what}; build the dataset again")


class ShardDataset:
    """Samples of a dataset folder in stored order. Reading is safe from threads and after a fork."""

    def __init__(self, folder: Path | str) -> None:
        """Read dataset.json and the indexes, not the tars; BadInput when one is missing or damaged."""
        self.folder = local_folder(folder)
        self.info: DatasetInfo = read_info(self.folder)
        self.digest: str = sha256_file(self.folder / DATASET_FILE)
        self.entries = Entries()
        for shard in self.info.shards:
            check_size(self.folder, shard.tar)
            self.entries.extend(read_index(self.folder, shard).samples)
        self.shard_sizes: list[int] = [shard.samples for shard in self.info.shards]
        self._starts = [0, *accumulate(self.shard_sizes)]
        self._local = threading.local()

    @classmethod
    def open(cls, folder: Path | str) -> "ShardDataset":
        """The dataset in `folder`."""
        return cls(folder)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def keys(self) -> list[str]:
        """Keys of all samples, in stored order."""
        return [self.entries.key(i) for i in range(len(self))]

    def read(self, i: int) -> Sample:
        """Sample `i`, 0 ≤ i < len; BadInput, naming shard and key, when its bytes are not what the index says."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = bisect_right(self._starts, i) - 1
        path = self.folder / self.info.shards[shard].tar.file
        return read_sample(reader_of(self._handle(path).fileno()), str(path), self.entries[i])

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))

    def _handle(self, path: Path) -> FileIO:
        """An open tar. Every thread has its own few, so none closes what another one reads."""
        handles: OrderedDict[Path, FileIO] = self._local.__dict__.setdefault("handles", OrderedDict())
        if path not in handles:
            handles[path] = FileIO(path)
            if len(handles) > _OPEN_FILES:
                handles.popitem(last=False)[1].close()
        handles.move_to_end(path)
        return handles[path]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()
