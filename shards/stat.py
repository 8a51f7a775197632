"""Counts over a dataset."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.dataset import ShardDataset
from shards.sample import Sample, Text


@dataclass(frozen=True)
class DatasetStat:
    """Counts; `turns` are assistant messages, `types` count questions, `characters` are those of all messages."""

    name: str
    samples: int
    images: int
    questions: int
    turns: int
    languages: dict[str, int]
    types: dict[str, int]
    image_sizes: dict[str, int]
    characters: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def stat(folder: Path | str, progress: Callable[[int], None] | None = None) -> DatasetStat:
    """Count what a dataset folder holds. `progress` gets the number of samples counted."""
    dataset = ShardDataset(folder)
    languages: Counter[str] = Counter()
    types: Counter[str] = Counter()
    turns = characters = 0
    for done, sample in enumerate(dataset, 1):
        languages[sample.lang] += 1
        types.update(question.type or "untyped" for question in sample.questions)
        turns += sum(message.role == "assistant" for message in sample.messages)
        characters += _characters(sample)
        if progress:
            progress(done)
    sizes = Counter("{}x{}".format(*entry.image_size) for entry in dataset.entries if entry.image_size)
    return DatasetStat(
        name=dataset.info.name,
        samples=len(dataset),
        images=dataset.info.images,
        questions=types.total(),
        turns=turns,
        languages=_by_count(languages),
        types=_by_count(types),
        image_sizes=_by_count(sizes),
        characters=characters,
    )


def _characters(sample: Sample) -> int:
    return sum(len(part.text) for message in sample.messages for part in message.content if isinstance(part, Text))


def _by_count(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
