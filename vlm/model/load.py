"""Load an assembled model for training, evaluation or merging."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from shards.errors import BadInput
from shards.files import read_json, verify_manifest
from vlm.model.attention import PACKED

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class ModelConfig:
    """Section `model` of a recipe."""

    base: str = ""
    """Folder of an assembled model (`vlm assemble`)."""
    dtype: str = "bfloat16"
    """float32, bfloat16 or float16."""
    attention: str = "auto"
    """auto, flash-attn, torch-varlen or sdpa."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadInput(f"model.dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")


def model_folder(config: ModelConfig) -> Path:
    """The base's folder, its digests checked. Raises BadInput when it is missing or damaged."""
    folder = Path(config.base)
    if not config.base or not (folder / "config.json").exists():
        raise BadInput(f"model.base: {config.base or '(empty)'} is not a model folder; make one with `vlm assemble`")
    problems = verify_manifest(folder)
    if problems:
        raise BadInput(f"model.base: {folder} is damaged: {problems[0]}")
    return folder


def load_model(folder: Path, dtype: str, packed: bool) -> LlavaForConditionalGeneration:
    """The model in memory; `packed` selects attention over flat rows, otherwise transformers' own SDPA."""
    model = LlavaForConditionalGeneration.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        attn_implementation={"text_config": PACKED if packed else "sdpa", "vision_config": "sdpa"},
        trust_remote_code=False,
    )
    # a cache made in training lets documents of a packed row see each other without any error
    if packed:
        model.config.use_cache = model.config.text_config.use_cache = False
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def sliding_window(folder: Path) -> int | None:
    """The attention window of a model folder's language model, in tokens; None for full attention."""
    window = read_json(folder / "config.json")["text_config"].get("sliding_window")
    return int(window) if window else None
