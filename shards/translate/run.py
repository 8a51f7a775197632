"""A dataset in one language to the same dataset in another, shard by shard."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from shards.build import claim_dataset, clear_output, versions
from shards.dataset import ShardDataset, read_index
from shards.errors import BadInput
from shards.files import UNFINISHED, release_output, write_atomic, write_json
from shards.info import DATASET_FILE, DatasetInfo, ShardInfo, check_name, read_info
from shards.sample import Sample
from shards.tar import ShardWriter, read_sample, reader_of
from shards.translate.engine import Engine, describe
from shards.translate.journal import JOURNAL, Journal, ShardResult
from shards.translate.quality import measure
from shards.translate.translator import Translator

QUALITY_FILE = "quality.json"
REJECTED_FILE = "rejected.jsonl"


def translate_dataset(
    source: Path,
    out: Path,
    engine: Engine,
    limit_missing: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Write the translation of dataset `source` to `out`; `progress` gets the number of source samples done.

    Keys, image bytes and shards correspond. A shard that stands already is not done again, and the result does not
    depend on interruptions. A sample with a text that the engine cannot translate goes to rejected.jsonl; when their
    share of all samples exceeds `limit_missing`: BadInput with the text and the key.
    """
    dataset = ShardDataset.open(source)
    if dataset.info.lang != engine.source_lang:
        raise BadInput(f"{source} is in {dataset.info.lang!r} and the engine translates from {engine.source_lang!r}")
    if out.resolve() == dataset.folder.resolve():
        raise BadInput(f"output folder {out} is the source itself; choose another --out")
    info = replace(
        dataset.info,
        name=check_name(f"{dataset.info.name}-{engine.target_lang}", str(source)),
        lang=engine.target_lang,
        versions=versions(),
        translated_from={"name": dataset.info.name, "digest": dataset.digest},
        engine={**describe(engine), "limit_missing": limit_missing},
    )
    if finished := _finished(out, info):
        return finished
    claim_dataset(out, info.name)
    journal = Journal(out, _work(info))
    translation = _Translation(dataset, out, info.name, Translator(engine), limit_missing * len(dataset))
    return _finish(out, info, translation.run(journal, progress))


def _work(info: DatasetInfo) -> str:
    """Digest of all that decides the output."""
    decisive = json.dumps([info.translated_from, info.engine, info.versions], sort_keys=True)
    return hashlib.sha256(decisive.encode()).hexdigest()


def _finished(out: Path, wanted: DatasetInfo) -> DatasetInfo | None:
    """The dataset in `out` if this very translation is complete there."""
    if not (out / DATASET_FILE).is_file() or (out / UNFINISHED).exists():
        return None
    info = read_info(out)
    return info if _work(info) == _work(wanted) else None


class _Translation:
    """The shards of one dataset, translated in order."""

    def __init__(self, dataset: ShardDataset, out: Path, name: str, translator: Translator, allowed: float) -> None:
        """`allowed` is the number of samples that may be rejected."""
        self.dataset, self.out, self.name, self.translator, self.allowed = dataset, out, name, translator, allowed
        self.rejected = 0

    def run(self, journal: Journal, progress: Callable[[int], None] | None) -> list[ShardResult]:
        """Results of all source shards; those that stand by the journal are taken from there."""
        standing = journal.load()
        clear_output(self.out, keep={UNFINISHED, JOURNAL, *_files(standing.values())})
        results: list[ShardResult] = []
        start = 0
        for ordinal, shard in enumerate(self.dataset.info.shards):
            result = standing.get(shard.tar.file)
            if result is None:
                result = self._shard(ordinal, range(start, start + shard.samples))
                journal.append(result)
            else:
                self.rejected += len(result.rejected)
            results.append(result)
            start += shard.samples
            if progress:
                progress(start)
        return results

    def _shard(self, ordinal: int, indices: range) -> ShardResult:
        self.translator.look_up(map(self.dataset.read, indices))
        rejected = []
        with ShardWriter(self.out, f"{self.name}-{ordinal:06d}") as writer:
            for sample in map(self.dataset.read, indices):
                missing = self.translator.missing(sample)
                if missing is None:
                    writer.add(self.translator.translate(sample))
                else:
                    self._reject(sample.key, missing)
                    rejected.append({"key": sample.key, "text": missing})
            shard = writer.finish() if len(writer) else None
        return ShardResult(self.dataset.info.shards[ordinal].tar.file, shard, tuple(rejected))

    def _reject(self, key: str, text: str) -> None:
        self.rejected += 1
        if self.rejected > self.allowed:
            engine = self.translator.engine
            raise BadInput(
                f"no translation of {text!r:.200} (sample {key!r}) by {engine.name} {engine.model}; "
                "add it, or raise limit_missing to drop such samples"
            )


def _files(results: Iterable[ShardResult]) -> set[str]:
    return {file.file for result in results if result.shard for file in (result.shard.tar, result.shard.index)}


def _finish(out: Path, info: DatasetInfo, results: list[ShardResult]) -> DatasetInfo:
    """Write what describes the whole, dataset.json last; all of it follows from what stands in `out`."""
    shards = tuple(result.shard for result in results if result.shard)
    rejected = [line for result in results for line in result.rejected]
    if not shards:
        raise BadInput(f"no sample could be translated; first text without a translation: {rejected[0]['text']!r:.200}")
    entries = [entry for shard in shards for entry in read_index(out, shard).samples]
    info = replace(
        info,
        samples=len(entries),
        questions=sum(entry.questions for entry in entries),
        images=sum(entry.image_size is not None for entry in entries),
        shards=shards,
    )
    write_json(out / QUALITY_FILE, measure(_written(out, shards), rejected).to_json())
    if rejected:
        write_atomic(out / REJECTED_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rejected))
    write_json(out / DATASET_FILE, info.to_json())
    (out / JOURNAL).unlink(missing_ok=True)
    release_output(out)
    return info


def _written(out: Path, shards: Iterable[ShardInfo]) -> Iterator[Sample]:
    for shard in shards:
        with open(out / shard.tar.file, "rb") as handle:
            for entry in read_index(out, shard).samples:
                yield read_sample(reader_of(handle.fileno()), shard.tar.file, entry)
