"""Join a vision tower and a language model into one LLaVA model; every size follows the two configs."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from shards.errors import BadInput
from shards.files import read_json, sealed_output, write_json
from vlm.data.template import IMAGE, TEMPLATE_FILE, ChatTemplate, keep_template, load_template
from vlm.model.licences import copy_licences
from vlm.model.parts import Part, Tower, load_language, load_part_tokenizer, load_tower, weights_digest
from vlm.model.projector import KINDS, load_projector, new_projector
from vlm.model.vocabulary import extend_vocabulary

__all__ = ["Assembly", "assemble", "weights_digest"]

PAD = "<pad>"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Assembly:
    """What `assemble` joined: `assembly.json` of a model folder. `new_token_ids` have no pretrained embedding.

    `projector` is mlp or linear. With `tiles` above 0 an image is given as up to so many tiles of the tower's size
    and the whole, each of `image_tokens` tokens.
    """

    vision: str
    language: str
    vision_digest: str
    language_digest: str
    template: str
    image_tokens: int
    new_token_ids: list[int]
    seed: int
    projector: str = "mlp"
    tiles: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Assembly":
        """Of an assembled model folder; raises BadInput for another folder."""
        path = folder / "assembly.json"
        if not path.exists():
            raise BadInput(f"model.base: {folder} has no assembly.json; make it with `vlm assemble --out {folder}`")
        try:
            found = cls(**read_json(path))
        except TypeError:
            raise BadInput(f"{path}: garbage; assemble the model again") from None
        return replace(found, template=str(folder / TEMPLATE_FILE)) if found.template == TEMPLATE_FILE else found

    def chat(self, template: str) -> ChatTemplate:
        """`template`, a name or a file as `data.template` gives it, or the model's own where that is empty."""
        return load_template(template or self.template)

    def to_json(self) -> dict[str, Any]:
        """Fields that are not at their default."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


def assemble(
    vision: Path | str,
    language: Path | str,
    out: Path,
    *,
    template: str,
    new_language_texts: Iterable[str] = (),
    new_tokens: int = 0,
    feature_layer: int = -2,
    seed: int = 0,
    dtype: str = "",
    projector: str = "mlp",
    projector_weights: Path | None = None,
    reinit_projector: bool = False,
    tiles: int = 0,
) -> Assembly:
    """Write a `LlavaForConditionalGeneration` folder made of a CLIP or SigLIP tower and a causal language model.

    `vision` and `language` are folders, names of the hub, or, for the language model, a GGUF file. Weights are
    written in `dtype`, where it is empty in the language model's own. The projector (`mlp`, LLaVA 1.5's, or
    `linear`) takes its input size from the tower and its output size from the language model; `projector_weights`
    gives it trained weights, and with `reinit_projector` those of another shape are left out instead of refused.
    `<image>` and `<pad>` are added to the vocabulary, and up to `new_tokens` more learned on `new_language_texts`;
    their embeddings are drawn around the old ones' mean. Raises BadInput for what is not such models.
    """
    chat = load_template(template)
    _check_options(dtype, projector, projector_weights, reinit_projector, tiles)
    vision_part, language_part = Part.find("--vision", vision), Part.find("--language", language)
    tower = load_tower(vision_part)
    text_model = load_language(language_part, DTYPES.get(dtype))
    tower.model.to(text_model.dtype)
    tokenizer = load_part_tokenizer(language_part, text_model.config.model_type)
    torch.manual_seed(seed)
    new_ids = _extend(tokenizer, new_language_texts, new_tokens, chat)
    _grow(text_model, len(tokenizer), new_ids)
    model = _join(tower, text_model, tokenizer, feature_layer, KINDS[projector])
    if projector_weights is not None:
        load_projector(model.model.multi_modal_projector, projector, projector_weights, reinit_projector)
    assembly = Assembly(
        vision=vision_part.name,
        language=language_part.name,
        vision_digest=weights_digest(vision_part.path),
        language_digest=weights_digest(language_part.path),
        template=template,
        image_tokens=tower.image_tokens,
        new_token_ids=new_ids,
        seed=seed,
        projector=projector,
        tiles=tiles,
    )
    with sealed_output(out):
        model.save_pretrained(out)
        save_processor(out, tower, tokenizer, chat)
        for part, role in ((vision_part, "vision"), (language_part, "language")):
            copy_licences(part.path.parent if part.gguf else part.path, role, out)
        write_json(out / "assembly.json", {**assembly.to_json(), "template": keep_template(chat, out)})
    return Assembly.read(out)


def _check_options(dtype: str, projector: str, weights: Path | None, anew: bool, tiles: int) -> None:
    if dtype and dtype not in DTYPES:
        raise BadInput(f"--dtype {dtype}: not one of {', '.join(DTYPES)}")
    if projector not in KINDS:
        raise BadInput(f"--projector {projector}: not one of {', '.join(KINDS)}")
    if anew and weights is None:
        raise BadInput("--reinit-projector goes with --projector-weights; without them the projector is new anyway")
    if tiles < 0 or tiles == 1:
        raise BadInput(f"--tiles {tiles}: must be 0 (none) or at least 2")


def _extend(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], size: int, chat: ChatTemplate) -> list[int]:
    """Add `<image>`, `<pad>` and learned tokens; end of text becomes what ends an answer in the template."""
    if marker := chat.foreign_marker(tokenizer):
        raise BadInput(f"--template {chat.name}: its {marker} is not a token of the language model; take another")
    new_ids = extend_vocabulary(tokenizer, texts, size) if size else []
    before = len(tokenizer)
    tokenizer.add_tokens([IMAGE, PAD], special_tokens=True)
    tokenizer.pad_token = PAD
    if chat.stop and chat.stop != tokenizer.eos_token:
        tokenizer.eos_token = chat.stop
    return [*new_ids, *range(before, len(tokenizer))]


@torch.no_grad()
def _grow(text_model: PreTrainedModel, size: int, new_ids: list[int]) -> None:
    """Make room for `size` tokens. Many models have more rows than tokens: such rows are kept, and drawn anew for
    new tokens."""
    old = text_model.get_input_embeddings().weight.shape[0]
    if size > old:
        text_model.resize_token_embeddings(size)
    spare = [i for i in new_ids if i < old]
    if spare:
        for layer in (text_model.get_input_embeddings(), text_model.get_output_embeddings()):
            known = layer.weight[: spare[0]].float()
            drawn = known.mean(0) + 1e-3 * known.std(0) * torch.randn(len(spare), known.shape[1])
            layer.weight[spare] = drawn.to(layer.weight.dtype)


def _join(
    tower: Tower,
    text_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    feature_layer: int,
    activation: str,
) -> LlavaForConditionalGeneration:
    """The whole model around the parts' own tensors: none is copied."""
    layers = tower.model.config.num_hidden_layers
    if not -layers - 1 <= feature_layer <= layers:
        raise BadInput(f"--feature-layer {feature_layer}: the tower has {layers} layers")
    # where the parts lay on this machine is nobody's business, and would make equal models differ
    tower.model.config._name_or_path = text_model.config._name_or_path = ""
    config = LlavaConfig(
        vision_config=tower.model.config,
        text_config=text_model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=tower.image_tokens,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=tower.strategy,
        projector_hidden_act=activation,
        pad_token_id=tokenizer.pad_token_id,
        dtype=text_model.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower.model
    model.model.multi_modal_projector = new_projector(config, text_model.dtype)
    model.model.language_model = text_model.model
    model.lm_head = text_model.lm_head
    model.generation_config = _generation_config(tokenizer)
    return model


def _generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )


def save_processor(out: Path, tower: Tower, tokenizer: PreTrainedTokenizerFast, chat: ChatTemplate) -> None:
    """Write the LLaVA processor (image processor, tokenizer, chat template) beside the weights."""
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            do_pad=True,
            size={"shortest_edge": tower.side},
            crop_size={"height": tower.side, "width": tower.side},
            image_mean=tower.mean,
            image_std=tower.std,
        ),
        tokenizer=tokenizer,
        patch_size=int(tower.model.config.patch_size),
        vision_feature_select_strategy=tower.strategy,
        num_additional_image_tokens=int(tower.strategy == "default"),
        chat_template=chat.jinja(),
    )
    processor.save_pretrained(out)
