"""Readers of raw sets, by name."""

from shards.errors import BadInput, nearest
from shards.readers.alpaca import ALPACA
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.easy_vqa import EASY_VQA, EASY_VQA_CAPTIONS
from shards.readers.gqa import GQA
from shards.readers.gqa_ru import GQA_RU
from shards.readers.hf_datasets import HF_DATASETS
from shards.readers.llava import LLAVA, LLAVA_INSTRUCT_RU
from shards.readers.llava_bench import LLAVA_BENCH
from shards.readers.mmbench import MMBENCH, MMBENCH_RU
from shards.readers.ours import JSONL
from shards.readers.pope import POPE
from shards.readers.scienceqa import SCIENCEQA
from shards.readers.sharegpt import SHAREGPT
from shards.readers.textvqa import TEXTVQA
from shards.readers.vizwiz import VIZWIZ
from shards.readers.vqav2 import VQAV2

# in the order of the alphabet
_ALL = (
    ALPACA,
    EASY_VQA,
    EASY_VQA_CAPTIONS,
    GQA,
    GQA_RU,
    HF_DATASETS,
    JSONL,
    LLAVA,
    LLAVA_BENCH,
    LLAVA_INSTRUCT_RU,
    MMBENCH,
    MMBENCH_RU,
    POPE,
    SCIENCEQA,
    SHAREGPT,
    TEXTVQA,
    VIZWIZ,
    VQAV2,
)

READERS: dict[str, Reader] = {reader.name: reader for reader in _ALL}


def find_reader(name: str) -> Reader:
    """The reader of that name, or BadInput."""
    if name not in READERS:
        raise BadInput(f"--reader {name!r:.100}: unknown{nearest(name, READERS)}")
    return READERS[name]


__all__ = ["READERS", "Draft", "Reader", "ReaderOptions", "find_reader"]
