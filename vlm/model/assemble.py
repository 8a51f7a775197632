"""Join a vision tower and a language model into one LLaVA model; every size follows the two configs."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from shards.errors import BadInput
from shards.files import MANIFEST, read_json, sealed_output, sha256_file, write_json
from vlm.data.template import IMAGE, ChatTemplate, load_template
from vlm.model.vocabulary import extend_vocabulary

PAD = "<pad>"


@dataclass(frozen=True)
class Assembly:
    """What `assemble` joined: `assembly.json` of a model folder. `new_token_ids` have no pretrained embedding."""

    vision: str
    language: str
    vision_digest: str
    language_digest: str
    template: str
    image_tokens: int
    new_token_ids: list[int]
    seed: int

    @classmethod
    def read(cls, folder: Path) -> "Assembly":
        """Of an assembled model folder; raises BadInput for another folder."""
        path = folder / "assembly.json"
        if not path.exists():
            raise BadInput(f"model.base: {folder} has no assembly.json; make it with `vlm assemble --out {folder}`")
        try:
            return cls(**read_json(path))
        except TypeError:
            raise BadInput(f"{path}: garbage; assemble the model again") from None


def assemble(
    vision: Path,
    language: Path,
    out: Path,
    *,
    template: str,
    new_language_texts: Iterable[str] = (),
    new_tokens: int = 0,
    feature_layer: int = -2,
    seed: int = 0,
) -> Assembly:
    """Write a `LlavaForConditionalGeneration` folder made of a CLIP vision tower and a causal language model.

    The projector is LLaVA 1.5's two-layer MLP: its input is the tower's hidden size, its output the language
    model's. `<image>` and `<pad>` are added to the vocabulary, and up to `new_tokens` more learned on
    `new_language_texts`; their embeddings are drawn around the old ones' mean. Raises BadInput for folders that are
    not such models.
    """
    chat = load_template(template)
    tower = _load_tower(vision)
    clip = read_json(vision / "preprocessor_config.json")
    text_model = _load_language(language)
    tokenizer = AutoTokenizer.from_pretrained(language, trust_remote_code=False)
    torch.manual_seed(seed)
    new_ids = _extend(tokenizer, new_language_texts, new_tokens)
    model = _join(tower, text_model, tokenizer, feature_layer)
    assembly = Assembly(
        vision=vision.name,
        language=language.name,
        vision_digest=weights_digest(vision),
        language_digest=weights_digest(language),
        template=template,
        image_tokens=model.config.image_seq_length,
        new_token_ids=new_ids,
        seed=seed,
    )
    with sealed_output(out):
        model.save_pretrained(out)
        save_processor(out, clip, tokenizer, chat, tower.config.patch_size)
        write_json(out / "assembly.json", asdict(assembly))
    return assembly


def weights_digest(folder: Path) -> str:
    """sha256 over the digests of a model folder's safetensors files; as its manifest says, where there is one."""
    _weights_file(folder)
    sealed = read_json(folder / MANIFEST)["files"] if (folder / MANIFEST).exists() else {}
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    digests = [sealed[name]["sha256"] if name in sealed else sha256_file(folder / name) for name in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _weights_file(folder: Path) -> None:
    if not any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise BadInput(f"{folder} has no model.safetensors; save the model in safetensors form first")


def _load_tower(folder: Path) -> CLIPVisionModel:
    config = _config(folder, "--vision")
    if config.model_type not in ("clip", "clip_vision_model"):
        raise BadInput(f"--vision {folder}: model_type {config.model_type!r} is not a CLIP vision tower")
    _weights_file(folder)
    return CLIPVisionModel.from_pretrained(folder, dtype=torch.float32)


def _load_language(folder: Path) -> PreTrainedModel:
    _config(folder, "--language")
    _weights_file(folder)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        raise BadInput(f"--language {folder}: not a causal language model ({str(error).splitlines()[0]})") from None


def _config(folder: Path, option: str) -> AutoConfig:
    if not (folder / "config.json").exists():
        raise BadInput(f"{option} {folder}: no config.json; it must be a Hugging Face model folder")
    if "auto_map" in read_json(folder / "config.json"):
        raise BadInput(f"{option} {folder}: config.json asks for remote code (auto_map), which is never run")
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _extend(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], size: int) -> list[int]:
    new_ids = extend_vocabulary(tokenizer, texts, size) if size else []
    before = len(tokenizer)
    tokenizer.add_tokens([IMAGE, PAD], special_tokens=True)
    tokenizer.pad_token = PAD
    return [*new_ids, *range(before, len(tokenizer))]


def _join(
    tower: CLIPVisionModel, text_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, feature_layer: int
) -> LlavaForConditionalGeneration:
    text_model.resize_token_embeddings(len(tokenizer))
    # where the parts lay on this machine is nobody's business, and would make equal models differ
    tower.config._name_or_path = text_model.config._name_or_path = ""
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text_model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_layer=feature_layer,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(text_model.model.state_dict())
    model.lm_head.load_state_dict(text_model.lm_head.state_dict())
    model.tie_weights()
    model.generation_config = _generation_config(tokenizer)
    return model


def _generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )


def save_processor(
    out: Path, clip: dict[str, Any], tokenizer: PreTrainedTokenizerFast, chat: ChatTemplate, patch_size: int
) -> None:
    """Write the LLaVA processor (image processor, tokenizer, chat template) beside the weights."""
    side = clip["crop_size"]["height"] if isinstance(clip["crop_size"], dict) else clip["crop_size"]
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            do_pad=True,
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=clip["image_mean"],
            image_std=clip["image_std"],
        ),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat.jinja(),
    )
    processor.save_pretrained(out)
