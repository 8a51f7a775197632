"""The full check of a dataset folder: every byte against its digest, every sample, every image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.dataset import check_size, read_index
from shards.errors import BadInput
from shards.files import UNFINISHED, sha256_file
from shards.index import IndexEntry, ShardIndex
from shards.info import DATASET_FILE, DatasetInfo, ShardInfo, read_info
from shards.tar import image_size, read_sample, reader_of, walk_members


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of the folder."""

    file: str
    what: str


def verify(folder: Path | str, progress: Callable[[int], None] | None = None) -> list[Problem]:
    """All problems of a dataset folder, none when it is whole. `progress` gets the number of samples checked."""
    folder = Path(folder)
    try:
        info = read_info(folder)
    except BadInput as error:
        return [Problem(DATASET_FILE, str(error))]
    return list(_Check(folder, info, progress).problems())


class _Check:
    def __init__(self, folder: Path, info: DatasetInfo, progress: Callable[[int], None] | None) -> None:
        self.folder, self.info, self.progress = folder, info, progress
        self.keys: dict[str, str] = {}
        self.question_ids: dict[str, str] = {}
        self.samples = self.questions = self.images = 0

    def problems(self) -> Iterator[Problem]:
        yield from self._strays()
        whole = True
        for shard in self.info.shards:
            for problem in self._shard(shard):
                whole = False
                yield problem
        if whole:
            yield from self._counts()

    def _shard(self, shard: ShardInfo) -> Iterator[Problem]:
        yield from self._digests(shard)
        try:
            index = read_index(self.folder, shard)
        except BadInput as error:
            yield Problem(shard.index.file, str(error))
            return
        if (self.folder / shard.tar.file).is_file():
            yield from self._members(shard.tar.file, index)
            yield from self._samples(shard.tar.file, index)

    def _strays(self) -> Iterator[Problem]:
        if (self.folder / UNFINISHED).exists():
            yield Problem(UNFINISHED, "the dataset is being written, or its writing was interrupted")
        known = {file.file for shard in self.info.shards for file in (shard.tar, shard.index)}
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith((".tar", ".index.json")) and path.name not in known:
                yield Problem(path.name, f"not part of the dataset: {DATASET_FILE} does not list it")

    def _digests(self, shard: ShardInfo) -> Iterator[Problem]:
        file = shard.tar
        try:
            check_size(self.folder, file)
        except BadInput as error:
            yield Problem(file.file, str(error))
            return
        if sha256_file(self.folder / file.file) != file.sha256:
            yield Problem(file.file, f"digest differs from {DATASET_FILE}: bytes have changed since it was built")

    def _members(self, tar: str, index: ShardIndex) -> Iterator[Problem]:
        """Members that a plain tar reader sees against those of the index."""
        wanted = [(f"{entry.key}.{ext}", *span) for entry in index.samples for ext, span in entry.members.items()]
        try:
            with open(self.folder / tar, "rb") as handle:
                found = list(walk_members(reader_of(handle.fileno()), tar))
        except BadInput as error:
            yield Problem(tar, str(error))
            return
        if found != wanted:
            yield Problem(tar, f"its {len(found)} members are not the {len(wanted)} of its index")

    def _samples(self, tar: str, index: ShardIndex) -> Iterator[Problem]:
        with open(self.folder / tar, "rb") as handle:
            for entry in index.samples:
                try:
                    self._sample(handle.fileno(), tar, entry)
                except BadInput as error:
                    yield Problem(tar, str(error))
                self.samples += 1
                if self.progress:
                    self.progress(self.samples)

    def _sample(self, fd: int, tar: str, entry: IndexEntry) -> None:
        if entry.key in self.keys:
            raise BadInput(f"the key {entry.key!r} is taken already by a sample of {self.keys[entry.key]}")
        self.keys[entry.key] = tar
        sample = read_sample(reader_of(fd), tar, entry)
        if image_size(sample) != entry.image_size:
            raise BadInput(f"sample {entry.key!r}: the image is not of the size {entry.image_size} in the index")
        if len(sample.questions) != entry.questions:
            raise BadInput(f"sample {entry.key!r}: {len(sample.questions)} questions, in the index {entry.questions}")
        self.questions += len(sample.questions)
        self.images += sample.image is not None
        for question in sample.questions:
            other = self.question_ids.setdefault(question.question_id, entry.key)
            if other != entry.key:
                raise BadInput(f"samples {other!r} and {entry.key!r} share question_id {question.question_id!r:.100}")

    def _counts(self) -> Iterator[Problem]:
        found = {"samples": self.samples, "questions": self.questions, "images": self.images}
        for name, count in found.items():
            if count != getattr(self.info, name):
                yield Problem(DATASET_FILE, f"{name} is {getattr(self.info, name)} and the shards hold {count}")
