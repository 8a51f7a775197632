"""A translation model with its tokenizer, loaded from a folder, the hub or a GGUF file."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shards.errors import BadInput
from shards.files import sha256_file

# what decides a model's output among the files of its folder
_DECISIVE = (".json", ".safetensors", ".model", ".spm", ".txt", ".jinja")
# what the libraries raise for files that are torn, of another kind or hostile; RuntimeError is for other shapes
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    SafetensorError,
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """`identity` names the weights: name and digest, or the hub's name and commit."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: str

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def max_length(self) -> int | None:
        """Most tokens that the model has positions for, where there is such a limit."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return length if isinstance(length, int) else None


def load_checkpoint(name: str, device: str, dtype: str) -> Checkpoint:
    """Load `name`: a folder, a GGUF file, or a model of the hub. No code of the model's is ever run.

    Weights are safetensors or GGUF. `device` and `dtype` may be `auto`: CUDA where there is one, bfloat16 there and
    float32 on the CPU. BadInput, naming the model, when it cannot be had so.
    """
    if not name:
        raise BadInput("translate.model is empty; give a folder, a GGUF file or a model of the hub")
    where, options = _place(name)
    chosen = _device(device)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
        auto = _class(config, name)
        commit = getattr(config, "_commit_hash", None)
        if commit:  # what was named a moment ago may change on the hub
            options["revision"] = commit
        # the type named here saves another pass over a GGUF file's vocabulary, which takes 10 s
        kind = {"tokenizer_type": config.model_type} if "gguf_file" in options else {}
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **kind, **options)
        model = auto.from_pretrained(
            where,
            config=config,
            trust_remote_code=False,
            use_safetensors=None if "gguf_file" in options else True,
            dtype=_dtype(dtype, chosen),
            **options,
        )
    except ImportError as error:
        raise BadInput(f"translate.model={name!r:.300} needs a package that is missing: {_line(error)}") from error
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        raise BadInput(f"translate.model={name!r:.300} cannot be loaded: {_line(error)}") from error
    identity = f"{name}@{commit}" if commit else f"{Path(name).name}@{_digest(Path(name))}"
    return Checkpoint(model.to(chosen).eval(), tokenizer, identity)


def _place(name: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a name."""
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BadInput(f"translate.model={name!r:.300}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").is_file():
        raise BadInput(f"translate.model={name!r:.300}: no config.json there; name a model's folder or a .gguf file")
    return name, {}


def _class(config: PretrainedConfig, name: str) -> Any:
    seq2seq = config.is_encoder_decoder
    if type(config) not in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if seq2seq else MODEL_FOR_CAUSAL_LM_MAPPING):
        raise BadInput(f"translate.model={name!r:.300}: {config.model_type} models write no text")
    return AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM


def _digest(path: Path) -> str:
    """SHA-256, shortened, of a GGUF file or of the decisive files of a folder."""
    if path.is_file():
        return sha256_file(path)[:16]
    files = sorted(file for file in path.iterdir() if file.suffix in _DECISIVE and file.is_file())
    lines = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _device(name: str) -> torch.device:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(chosen)
    except RuntimeError as error:
        raise BadInput(f"translate.device={name!r:.50} is no device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"translate.device={name!r:.50}: there is no CUDA device here; use auto or cpu")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise BadInput(f"translate.dtype={name!r:.50} is unknown; use auto or {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
