"""Keys and question ids that occur twice in a dataset, found by their digests alone."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from shards.dataset import read_index
from shards.errors import BadInput
from shards.info import ShardInfo
from shards.tar import read_sample, reader_of
from shards.verify.shard import Problem, ShardReport, short_digest

# So many repeated texts are named.
_MOST_NAMED = 100

# (key of the sample, its key or one of its question ids)
Texts = Callable[[ShardInfo], Iterator[tuple[str, str]]]


def repeats(folder: Path, shards: Sequence[ShardInfo], reports: Sequence[ShardReport]) -> Iterator[Problem]:
    """A problem for every sample whose key, or one of whose question ids, belongs to a sample before it.

    Takes 24 bytes of memory a key and question id; only shards where a digest comes back are read once more.
    """
    keys = _repeated(shards, [report.keys for report in reports], partial(_keys, folder))
    for tar, key, _, other in islice(keys, _MOST_NAMED):
        yield Problem(tar, f"the key {key!r} is taken already by a sample of {other}")
    questions = _repeated(shards, [report.question_ids for report in reports], partial(_question_ids, folder))
    for tar, key, text, other in islice(questions, _MOST_NAMED):
        yield Problem(tar, f"sample {key!r}: its question_id {text!r:.100} is taken already by a sample of {other}")


def _repeated(
    shards: Sequence[ShardInfo], digests: Sequence["array[int]"], texts: Texts
) -> Iterator[tuple[str, str, str, str]]:
    """(tar, key, text, tar of the sample that has the text already)."""
    wanted = _twice(digests)
    first: dict[str, str] = {}
    for shard, of_shard in zip(shards, digests, strict=True):
        if not wanted or wanted.isdisjoint(of_shard):
            continue
        for key, text in texts(shard):
            if text in first:
                yield shard.tar.file, key, text, first[text]
            elif short_digest(text) in wanted:
                first[text] = shard.tar.file


def _twice(digests: Sequence["array[int]"]) -> set[int]:
    import numpy as np  # here, because it takes longer to import than a small dataset to check

    every = np.sort(np.frombuffer(b"".join(digests), np.uint64))
    return set(np.unique(every[1:][every[1:] == every[:-1]])[:_MOST_NAMED].tolist())


def _keys(folder: Path, shard: ShardInfo) -> Iterator[tuple[str, str]]:
    return ((entry.key, entry.key) for entry in read_index(folder, shard).samples)


def _question_ids(folder: Path, shard: ShardInfo) -> Iterator[tuple[str, str]]:
    with open(folder / shard.tar.file, "rb", buffering=0) as handle:
        for entry in read_index(folder, shard).samples:
            with suppress(BadInput):  # named already
                for question in read_sample(reader_of(handle.fileno()), shard.tar.file, entry).questions:
                    yield entry.key, question.question_id
