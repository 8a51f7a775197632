"""The two parts that `vlm assemble` joins, from a folder, the hub's cache or a GGUF file. No code of theirs is run.

Weights are safetensors, GGUF, or PyTorch files read with `weights_only`, which makes tensors and nothing else.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from shards.errors import BadInput
from shards.files import MANIFEST, read_json, sha256_file

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LANGUAGE_TYPES = ("llama", "mistral", "mixtral", "gemma3_text")
# what the libraries raise for files that are torn, of another kind or hostile; RuntimeError is for other shapes
UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, struct.error, SafetensorError)


@dataclass(frozen=True)
class Part:
    """One of the two parts: a folder or a GGUF file at `path`, called `name`, given by `option`."""

    option: str
    name: str
    path: Path

    @classmethod
    def find(cls, option: str, given: Path | str) -> "Part":
        """A path, or a name of the hub as `owner/name`, fetched into its cache where it is not there yet."""
        path = Path(given)
        if path.suffix == ".gguf" and not path.is_file():
            raise BadInput(f"{option} {given}: no such file")
        if path.exists():
            return cls(option, path.name, path)
        if len(path.parts) != 2 or path.is_absolute():
            raise BadInput(f"{option} {given}: no such folder")
        return cls(option, str(given), _fetch(option, str(given)))

    @property
    def gguf(self) -> bool:
        return self.path.is_file()

    def refused(self, why: object) -> BadInput:
        """The one line that says why this part cannot be taken."""
        return BadInput(f"{self.option} {self.name}: {' '.join(str(why).split())[:300]}")

    def config(self) -> PretrainedConfig:
        """Its configuration; BadInput where it is no plain model."""
        if not self.gguf:
            self._check_folder()
        try:
            return AutoConfig.from_pretrained(trust_remote_code=False, **self.source())
        except ImportError as error:
            raise self.refused(f"needs a package that is missing: {error}") from error
        except UNREADABLE as error:
            raise self.refused(f"its configuration cannot be read ({error})") from error

    def source(self) -> dict[str, Any]:
        """What `from_pretrained` takes."""
        if self.gguf:
            return {"pretrained_model_name_or_path": str(self.path.parent), "gguf_file": self.path.name}
        return {"pretrained_model_name_or_path": str(self.path)}

    def load(self, loader: Callable[..., Any], **options: Any) -> Any:
        """`loader(...)` of this part's weights; BadInput where the files do not give every weight of the model."""
        try:
            model, report = loader(**self.source(), output_loading_info=True, trust_remote_code=False, **options)
        except ImportError as error:
            raise self.refused(f"needs a package that is missing: {error}") from error
        except torch.OutOfMemoryError:
            raise
        except UnpicklingError as error:
            raise self.refused(
                "cannot be loaded: its files hold more than tensors, and their code is not run"
            ) from error
        except UNREADABLE as error:
            raise self.refused(f"cannot be loaded ({error})") from error
        if report["missing_keys"]:
            raise self.refused(f"its files lack weights of the model, first {min(report['missing_keys'])}")
        return model

    def _check_folder(self) -> None:
        if not (self.path / "config.json").exists():
            adapter = (self.path / "adapter_config.json").exists()
            remedy = "it is a PEFT adapter, merge it into its base first" if adapter else "give a Hugging Face model"
            raise BadInput(f"{self.option} {self.name}: no config.json; {remedy}")
        content = read_json(self.path / "config.json")
        if "auto_map" in content:
            raise self.refused("config.json asks for remote code (auto_map), which is never run")
        if "quantization_config" in content:
            raise self.refused("its weights are quantised; give the original ones")


def _fetch(option: str, name: str) -> Path:
    from huggingface_hub import snapshot_download

    plain = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=plain, ignore_patterns=["consolidated*", "*/*"]))
        if not any((folder / weights).exists() for weights in WEIGHTS):
            folder = Path(snapshot_download(name, allow_patterns=[*plain, "pytorch_model*"], ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:  # the hub's own errors are among them
        raise BadInput(f"{option} {name}: no such folder, and not had from the hub ({str(error)[:200]!r})") from error
    return folder


def weights_digest(path: Path) -> str:
    """sha256 over the digests of a model folder's weight files, as its manifest says where there is one; of a GGUF
    file, the file's. With tiles the same weights are another model, whose digest differs."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file.name for file in path.glob("*.safetensors")) or sorted(f.name for f in path.glob("*.bin"))
    if not files or not any((path / name).exists() for name in WEIGHTS):
        raise BadInput(f"{path} has no model.safetensors; save the model in safetensors form first")
    sealed = read_json(path / MANIFEST)["files"] if (path / MANIFEST).exists() else {}
    digests = [sealed[name]["sha256"] if name in sealed else sha256_file(path / name) for name in files]
    assembly = path / "assembly.json"
    if tiles := read_json(assembly).get("tiles", 0) if assembly.exists() else 0:
        digests.append(f" tiles {tiles}")
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class Tower:
    """A vision tower in memory. `strategy` is "default" where a class token stands before the patches."""

    model: PreTrainedModel
    strategy: str
    mean: list[float]
    std: list[float]

    @property
    def side(self) -> int:
        """Width and height of its images in pixels."""
        return int(self.model.config.image_size)

    @property
    def image_tokens(self) -> int:
        """Patches of an image, each a token of the language model."""
        return (self.side // int(self.model.config.patch_size)) ** 2


def load_tower(part: Part) -> Tower:
    """A CLIP or SigLIP tower, alone or out of a whole model: CLIP, SigLIP or LLaVA."""
    if part.gguf:
        raise part.refused("a GGUF file holds no vision tower; give a CLIP or SigLIP folder")
    config = part.config()
    if config.model_type not in (*_TOWERS, "clip", "siglip", "llava"):
        more = "; its images keep their shape, take a SigLIP 2 of fixed size" if config.model_type == "siglip2" else ""
        raise part.refused(f"model_type {config.model_type!r} is not a CLIP vision tower, nor a SigLIP one{more}")
    vision = getattr(config, "vision_config", config)
    loader, strategy = _TOWERS[vision.model_type]
    # SigLIP's pooling head is no part of LLaVA, which takes patches
    options: dict[str, Any] = {"vision_use_head": False} if loader is SiglipVisionModel else {}
    vision.update(options)
    pixels = _image_processor(part)
    return Tower(
        model=part.load(loader.from_pretrained, config=vision, dtype="auto", key_mapping={_LLAVA_TOWER: ""}),
        strategy=strategy,
        mean=pixels["image_mean"],
        std=pixels["image_std"],
    )


_LLAVA_TOWER = r"^(model\.)?vision_tower\.(vision_model\.)?"
_TOWERS: dict[str, tuple[Any, str]] = {
    "clip_vision_model": (CLIPVisionModel, "default"),
    "siglip_vision_model": (SiglipVisionModel, "full"),
}


def _image_processor(part: Part) -> dict[str, Any]:
    path = part.path / "processor_config.json"
    content = read_json(path).get("image_processor") if path.exists() else None
    content = content or read_json(part.path / "preprocessor_config.json")
    if not isinstance(content, dict) or not {"image_mean", "image_std"} <= content.keys():
        raise part.refused("preprocessor_config.json names no image_mean and image_std")
    return content


def load_language(part: Part, dtype: torch.dtype | None) -> PreTrainedModel:
    """A causal language model, in its own dtype where `dtype` is None."""
    config = part.config()
    if config.model_type not in LANGUAGE_TYPES:
        known = ", ".join(LANGUAGE_TYPES)
        raise part.refused(f"model_type {config.model_type!r} is not a causal language model that fits ({known})")
    if getattr(config, "final_logit_softcapping", None):
        raise part.refused("it caps its logits (final_logit_softcapping), which LLaVA does not do")
    model = part.load(AutoModelForCausalLM.from_pretrained, dtype=dtype or "auto")
    assert isinstance(model, PreTrainedModel)
    if part.gguf:
        # its weights are plain tensors by now, and the file is not what is written
        del model.config.quantization_config
        model.config.__dict__.pop("_model_name_or_path", None)
    return model


def load_part_tokenizer(part: Part, model_type: str) -> PreTrainedTokenizerFast:
    """The language model's tokenizer."""
    # the type saves another pass over a GGUF file's vocabulary, which takes 10 s; transformers knows it of some models
    kind = {"tokenizer_type": model_type} if part.gguf and TOKENIZER_MAPPING_NAMES.get(model_type) else {}
    try:
        return AutoTokenizer.from_pretrained(trust_remote_code=False, **kind, **part.source())
    except ImportError as error:
        raise part.refused(f"its tokenizer needs a package that is missing: {error}") from error
    except UNREADABLE as error:
        raise part.refused(f"its tokenizer cannot be read ({error})") from error
