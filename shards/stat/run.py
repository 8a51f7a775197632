"""Counts over a dataset."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shards.dataset import check_size, read_index
from shards.errors import BadInput
from shards.files import local_folder, parse_json
from shards.images import MAX_PIXELS
from shards.index import IndexEntry
from shards.info import DatasetInfo, ShardInfo, read_info
from shards.sample import Sample, Text
from shards.stat.image_sizes import ImageShapes, SizeTally
from shards.stat.spread import Spread, spread
from shards.tar import PositionalRead, reader_of
from shards.tokens import TokenCounter

# Threads wait for the file system side by side, above all for a network's; more of them would wait for each other.
_WORKERS = 4
_BATCH = 256
_TOP_SIZES = 20
_TOP_NAMES = 12


@dataclass(frozen=True)
class TokenStat:
    """Tokens of the message texts alone, without chat template and image; `supervised` is the answers' share."""

    tokenizer: str
    vocabulary: int
    supervised: float
    per_sample: Spread


@dataclass(frozen=True)
class DatasetStat:
    """Counts; `turns` are assistant messages, `types` count questions, `characters` are those of the message texts.

    `languages`, `sources` and `types` are ordered by count; `image_sizes` are the twenty most frequent ones.
    `supervised_characters` is the answers' share. `rejected` and `duplicates` are as the build recorded them. `bytes`
    are those of tars and indexes, `image_bytes` and `json_bytes` those of their members.
    """

    name: str
    split: str
    source: str
    licence: str
    shards: int
    bytes: int
    image_bytes: int
    json_bytes: int
    samples: int
    images: int
    text_only: int
    rejected: int
    duplicates: int
    questions: int
    turns: int
    characters: int
    supervised_characters: float
    languages: dict[str, int]
    sources: dict[str, int]
    types: dict[str, int]
    image_sizes: dict[str, int]
    image_shapes: ImageShapes
    turns_per_sample: Spread
    characters_per_sample: Spread
    tokens: TokenStat | None

    def to_json(self) -> dict[str, Any]:
        """As JSON; `image_shapes` and the spreads are objects."""
        return asdict(self)

    def to_text(self) -> str:
        """One aligned line a figure."""
        shards = "1 shard" if self.shards == 1 else f"{self.shards} shards"
        rows = [
            ("dataset", f"{self.name} ({self.split}): {shards}, {self.bytes / 1e6:.1f} MB"),
            ("samples", f"{self.samples}, {self.text_only} without an image"),
            ("images", f"{self.images}, {self.image_bytes / 1e6:.1f} MB, {self.image_shapes.distinct_sizes} sizes"),
            ("questions", f"{self.questions}"),
            ("turns", _line(self.turns_per_sample)),
            ("characters", f"{_line(self.characters_per_sample)}, {self.supervised_characters:.1%} in answers"),
        ]
        if self.tokens:
            tokens = f"{_line(self.tokens.per_sample)}, {self.tokens.supervised:.1%} in answers"
            rows.append(("tokens", f"{tokens} ({self.tokens.tokenizer}, {self.tokens.vocabulary} in the vocabulary)"))
        rows += [("rejected", f"{self.rejected}"), ("duplicates", f"{self.duplicates}")]
        tables = {"languages": self.languages, "sources": self.sources, "types": self.types, "sizes": self.image_sizes}
        rows += [(name, _listed(table)) for name, table in tables.items() if table]
        return "\n".join(f"{name:<11} {value}" for name, value in rows)


def stat(
    folder: Path | str,
    tokenizer: Path | str | None = None,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> DatasetStat:
    """Count what a dataset folder holds; images are not read, and what is in memory is a few shards' indexes.

    `tokenizer`: a tokenizer.json, or a folder with one, to count tokens with. `progress` gets the number of samples
    counted. The result does not depend on `workers`, the number of shards read at once. BadInput, naming the file,
    when something is missing or damaged; only `verify` checks every byte.
    """
    folder = local_folder(folder)
    if workers is not None and workers < 1:
        raise BadInput(f"workers is {workers}; at least 1 is wanted")
    info = read_info(folder)
    counter = None if tokenizer is None else TokenCounter(tokenizer)
    tally = _Tally()
    with ThreadPoolExecutor(workers or _WORKERS) as pool:
        for of_shard in pool.map(partial(_count_shard, folder, counter), info.shards):
            tally.update(of_shard)
            if progress:
                progress(tally.samples)
    return _summed(info, tally, counter)


@dataclass
class _Tally:
    """Counts of some samples; a sum of tallies does not depend on their order."""

    samples: int = 0
    questions: int = 0
    image_bytes: int = 0
    json_bytes: int = 0
    supervised_characters: int = 0
    supervised_tokens: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    characters: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    images: SizeTally = field(default_factory=SizeTally)

    def update(self, other: "_Tally") -> None:
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
            else:
                getattr(self, name).update(value)

    def add_entry(self, entry: IndexEntry) -> None:
        if entry.image_ext and entry.image_size:
            if not 1 <= min(entry.image_size) <= max(entry.image_size) <= MAX_PIXELS:
                raise BadInput(f"{entry.key}: an image of {entry.image_size} pixels; build the dataset again")
            self.images.sizes[entry.image_size] += 1
            self.images.formats[entry.image_ext] += 1
            self.image_bytes += entry.members[entry.image_ext][1]
        self.json_bytes += entry.members["json"][1]

    def add_sample(self, sample: Sample) -> None:
        self.samples += 1
        self.questions += len(sample.questions)
        self.languages[sample.lang] += 1
        self.sources[sample.source] += 1
        self.types.update(question.type or "untyped" for question in sample.questions)
        self.turns[sum(message.role == "assistant" for message in sample.messages)] += 1
        texts = list(_texts(sample))
        self.characters[sum(len(text) for text, _ in texts)] += 1
        self.supervised_characters += sum(len(text) for text, supervised in texts if supervised)

    def add_tokens(self, samples: list[Sample], counter: TokenCounter) -> None:
        of_samples = [list(_texts(sample)) for sample in samples]
        lengths = iter(counter.count([text for texts in of_samples for text, _ in texts]))
        for texts in of_samples:
            counted = [(next(lengths), supervised) for _, supervised in texts]
            self.tokens[sum(length for length, _ in counted)] += 1
            self.supervised_tokens += sum(length for length, supervised in counted if supervised)


def _count_shard(folder: Path, counter: TokenCounter | None, shard: ShardInfo) -> _Tally:
    try:
        return _tally_of(folder, counter, shard)
    except OSError as error:
        raise BadInput(f"{error.filename or folder / shard.tar.file}: cannot be read ({error.strerror})") from error


def _tally_of(folder: Path, counter: TokenCounter | None, shard: ShardInfo) -> _Tally:
    check_size(folder, shard.tar)
    entries = read_index(folder, shard).samples
    tally = _Tally()
    with open(folder / shard.tar.file, "rb", buffering=0) as handle:
        for start in range(0, len(entries), _BATCH):
            samples = []
            for entry in entries[start : start + _BATCH]:
                samples.append(_read(reader_of(handle.fileno()), shard.tar.file, entry))
                tally.add_entry(entry)
                tally.add_sample(samples[-1])
            if counter:
                tally.add_tokens(samples, counter)
    return tally


def _read(pread: PositionalRead, shard: str, entry: IndexEntry) -> Sample:
    """A sample whose image, if it has one, is left empty."""
    offset, size = entry.members["json"]
    obj = parse_json(pread(size, offset), f"{shard}: {entry.key}.json")
    try:
        return Sample.from_json(entry.key, obj, b"" if entry.image_ext else None, entry.image_ext)
    except BadInput as error:
        raise BadInput(f"{shard}: {error}") from error


def _texts(sample: Sample) -> Iterator[tuple[str, bool]]:
    """Every message text, and whether it is the assistant's."""
    for message in sample.messages:
        for part in message.content:
            if isinstance(part, Text):
                yield part.text, message.role == "assistant"


def _summed(info: DatasetInfo, tally: _Tally, counter: TokenCounter | None) -> DatasetStat:
    characters, turns, tokens = map(spread, (tally.characters, tally.turns, tally.tokens))
    images = tally.images.sizes.total()
    token_stat = None
    if counter:
        supervised = _share(tally.supervised_tokens, tokens.total)
        token_stat = TokenStat(counter.name, counter.vocabulary, supervised, tokens)
    return DatasetStat(
        name=info.name,
        split=info.split,
        source=info.source,
        licence=info.licence,
        shards=len(info.shards),
        bytes=sum(shard.tar.bytes + shard.index.bytes for shard in info.shards),
        image_bytes=tally.image_bytes,
        json_bytes=tally.json_bytes,
        samples=tally.samples,
        images=images,
        text_only=tally.samples - images,
        rejected=info.rejected,
        duplicates=info.duplicates,
        questions=tally.questions,
        turns=turns.total,
        characters=characters.total,
        supervised_characters=_share(tally.supervised_characters, characters.total),
        languages=_by_count(tally.languages),
        sources=_by_count(tally.sources),
        types=_by_count(tally.types),
        image_sizes=tally.images.top(_TOP_SIZES),
        image_shapes=tally.images.shapes(),
        turns_per_sample=turns,
        characters_per_sample=characters,
        tokens=token_stat,
    )


def _line(of: Spread) -> str:
    return f"{of.total}; a sample: mean {of.mean:.1f}, p50 {of.p50}, p90 {of.p90}, p99 {of.p99}, max {of.max}"


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{' '.join(name.split())[:60]} {count}" for name, count in list(counts.items())[:_TOP_NAMES]]
    return ", ".join([*shown, *([f"and {len(counts) - _TOP_NAMES} more"] if len(counts) > _TOP_NAMES else [])])


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
