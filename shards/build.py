"""Samples of a reader to a dataset folder of tar shards."""

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from shards.errors import BadInput
from shards.files import UNFINISHED, claim_output, release_output, write_json
from shards.info import DATASET_FILE, DatasetInfo, ShardInfo, check_name, read_info
from shards.readers.base import Reader, ReaderOptions
from shards.sample import Sample
from shards.tar import ShardWriter

_OURS = re.compile(
    r".+-\d{6}\.(tar|index\.json)|quality\.json|rejected\.jsonl|\.progress\.jsonl|\..+\.tmp|" + re.escape(UNFINISHED)
)


@dataclass
class _Tally:
    """Counts over all samples, and the first place of every key and question."""

    samples: int = 0
    questions: int = 0
    images: int = 0
    languages: set[str] = field(default_factory=set)
    keys: dict[str, int] = field(default_factory=dict)
    question_ids: dict[str, str] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        self.samples += 1
        if sample.key in self.keys:
            first = self.keys[sample.key]
            raise BadInput(f"samples {first} and {self.samples} of the source have the same key {sample.key!r}")
        self.keys[sample.key] = self.samples
        for question in sample.questions:
            other = self.question_ids.setdefault(question.question_id, sample.key)
            if other != sample.key:
                raise BadInput(f"samples {other!r} and {sample.key!r} share question_id {question.question_id!r:.100}")
        self.questions += len(sample.questions)
        self.images += sample.image is not None
        self.languages.add(sample.lang)


def build(
    reader: Reader,
    options: ReaderOptions,
    out: Path,
    name: str | None = None,
    samples_per_shard: int = 500,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Write the reader's samples below `out`; two builds of one source are byte-identical.

    `name` is the stem of the shards, READER-SPLIT if not given. `progress` gets the number of samples done.
    BadInput leaves no half-written folder; an interrupted build starts again.
    """
    name = check_name(name or f"{reader.name}-{options.split}", "--name")
    if samples_per_shard < 1:
        raise BadInput(f"samples_per_shard is {samples_per_shard}; at least 1 is wanted")
    # The first sample is read before the output is touched: most mistakes in the input show here.
    samples = iter(reader.read(options))
    first = next(samples, None)
    if first is None:
        raise BadInput(f"reader {reader.name} found no samples; check --input, --split and --limit")
    created = claim_dataset(out, name)
    clear_output(out, keep={UNFINISHED})
    tally = _Tally()
    try:
        shards = _write_shards(chain([first], samples), tally, out, name, samples_per_shard, progress)
    except BadInput:
        if created:
            shutil.rmtree(out)
        else:
            clear_output(out)
        raise
    info = DatasetInfo(
        name=name,
        lang=next(iter(tally.languages)) if len(tally.languages) == 1 else "mul",
        split=options.split,
        source=reader.source,
        licence=reader.licence,
        samples=tally.samples,
        questions=tally.questions,
        images=tally.images,
        shards=tuple(shards),
        reader={"name": reader.name, **options.to_json()},
        versions=versions(),
    )
    write_json(out / DATASET_FILE, info.to_json())
    release_output(out)
    return info


def _write_shards(
    samples: Iterator[Sample],
    tally: _Tally,
    out: Path,
    name: str,
    per_shard: int,
    progress: Callable[[int], None] | None,
) -> list[ShardInfo]:
    shards: list[ShardInfo] = []
    sample: Sample | None = next(samples)
    while sample is not None:
        with ShardWriter(out, f"{name}-{len(shards):06d}") as writer:
            while sample is not None and len(writer) < per_shard:
                tally.add(sample)
                writer.add(sample)
                if progress:
                    progress(tally.samples)
                sample = next(samples, None)
            shards.append(writer.finish())
    return shards


def claim_dataset(out: Path, name: str) -> bool:
    """`claim_output` for a dataset; another complete dataset there is not overwritten either (BadInput)."""
    if (out / DATASET_FILE).is_file() and read_info(out).name != name:
        raise BadInput(f"output folder {out} holds the dataset {read_info(out).name!r}; choose another --out")
    return claim_output(out, DATASET_FILE)


def clear_output(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the files of earlier, unfinished work from a claimed folder, except the names in `keep`."""
    for path in folder.iterdir():
        if path.name not in keep and _OURS.fullmatch(path.name) and not path.is_dir():
            path.unlink()


def versions() -> dict[str, str]:
    """Versions that a dataset records."""
    try:
        own = importlib.metadata.version("ruvlm")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {"ruvlm": own, "python": platform.python_version()}
