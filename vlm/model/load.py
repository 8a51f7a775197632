"""Load an assembled model for training, evaluation or merging."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from shards.errors import BadInput
from shards.files import read_json, verify_manifest
from vlm.model.assemble import DTYPES as DTYPES
from vlm.model.attention import PACKED
from vlm.model.projector import keep_identity


@dataclass(kw_only=True)
class ModelConfig:
    """Section `model` of a recipe."""

    base: str = ""
    """Folder of an assembled model (`vlm assemble`)."""
    dtype: str = "bfloat16"
    """float32, bfloat16 or float16."""
    attention: str = "auto"
    """auto, flash-attn, torch-varlen or sdpa."""
    checkpoint_blocks: int = 0
    """Recompute every n-th block's activations in the backward pass: less memory for more time; 0 none, 1 all."""
    compile_blocks: bool = False
    """torch.compile of the language model's blocks."""
    liger: bool = False
    """Liger's RMSNorm, gated MLP and rotary embedding; needs a GPU and the package liger-kernel."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadInput(f"model.dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")


def base_folder(config: ModelConfig) -> Path:
    """The base's folder. Raises BadInput when it is missing."""
    folder = Path(config.base)
    if not config.base or not (folder / "config.json").exists():
        named = config.base or "(empty)"
        raise BadInput(
            f"model.base: {named} is not a model folder; name one with model.base=DIR, or make one with `vlm assemble`"
        )
    return folder


def model_folder(config: ModelConfig) -> Path:
    """The base's folder, its digests checked. Raises BadInput when it is missing or damaged."""
    folder = base_folder(config)
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
    keep_identity(model.model.multi_modal_projector, model.config.projector_hidden_act)
    # a cache made in training lets documents of a packed row see each other without any error
    if packed:
        model.config.use_cache = model.config.text_config.use_cache = False
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def sliding_window(folder: Path) -> int | None:
    """The window of those layers of the language model that have one, in tokens; None for full attention throughout."""
    window = read_json(folder / "config.json")["text_config"].get("sliding_window")
    return int(window) if window else None
