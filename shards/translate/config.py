"""The recipe section `translate`."""

from dataclasses import dataclass
from pathlib import Path

from shards.errors import BadInput
from shards.translate.engine import Engine
from shards.translate.memory import MEMORIES, MemoryEngine, TranslationMemory

ENGINES = ("memory",)


@dataclass
class TranslateConfig:
    """How a dataset is translated."""

    engine: str = "memory"
    "what translates: memory"
    memory: str = ""
    "translation memory: a TSV file, or the name of one that comes along, such as easy_vqa.en-ru"
    source_lang: str = "en"
    "language of the source dataset"
    target_lang: str = "ru"
    "language to translate into; a memory works both ways"
    limit_missing: float = 0.0
    "largest share of samples, 0 to 1, that may be dropped for want of a translation"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise BadInput(f"translate.engine={self.engine!r:.100} is unknown; use {' or '.join(ENGINES)}")
        if not 0 <= self.limit_missing <= 1:
            raise BadInput(f"translate.limit_missing={self.limit_missing} should lie between 0 and 1")
        if self.source_lang == self.target_lang:
            raise BadInput(f"translate.source_lang and translate.target_lang are both {self.source_lang!r:.50}")


def packaged_memories() -> dict[str, Path]:
    """Name → file of the memories that come along."""
    return {path.name.removesuffix(".tsv"): path for path in sorted(MEMORIES.glob("*.tsv"))}


def make_engine(config: TranslateConfig) -> Engine:
    """The engine of a config; BadInput when its memory is missing or does not hold the two languages."""
    packaged = packaged_memories()
    if not config.memory:
        raise BadInput(f"translate.memory is empty; give a TSV file or one of {', '.join(packaged)}")
    path = packaged.get(config.memory, Path(config.memory))
    if not path.is_file():
        raise BadInput(f"translate.memory={config.memory!r:.300}: no such file, nor one of {', '.join(packaged)}")
    return MemoryEngine(TranslationMemory.load(path, config.source_lang, config.target_lang))
