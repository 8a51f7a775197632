"""What stands beside a model's weights, so that `from_pretrained`, `transformers serve` and vLLM take it as it is.

transformers 4.57, which llama.cpp's converters want, has other names and places for some things: both find theirs.
Only files of known names are copied, as plain files: no code, no link that leads out of the base, none of its paths.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import atomic_file, read_json, write_atomic, write_json
from vlm.data.template import TEMPLATE_FILE, TEMPLATES, ChatTemplate, keep_template, load_template
from vlm.merge.layout import INDEX, SINGLE, Stored, WeightFile
from vlm.model.licences import LICENCES, own_files

CONFIG, GENERATION, CHAT, CARD = "config.json", "generation_config.json", "chat_template.jinja", "README.md"
ASSEMBLY, TOKENIZER = "assembly.json", "tokenizer_config.json"
PROCESSOR, IMAGES = "processor_config.json", "preprocessor_config.json"
# of any tokenizer and processor that transformers reads
_COPIED = (
    ASSEMBLY, CHAT, TEMPLATE_FILE, "chat_template.json", PROCESSOR, IMAGES,
    "video_preprocessor_config.json", "tokenizer.json", TOKENIZER, "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "tokenizer.model.v*", "spiece.model", "sentencepiece*.model", "source.spm", "target.spm",
    "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "tekken.json",
)  # fmt: skip
# they name this machine's folders, or code that would have to be run
_LEFT_OUT = ("auto_map", "_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "_commit_hash")
_HEAD = 4 << 20
_NUMBER = re.compile(r"[0-9]{1,9}")
_SPECIAL = ("bos_token", "eos_token", "pad_token")
# transformers refuses to save them where nothing is drawn
_DRAWING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Facts:
    """What is known of a model besides its base and its weights.

    `template` is the chat template of its training, as `data.template` names it; empty for the base's own. `card` is
    the text of README.md (`vlm.merge.card.Card`).
    """

    template: str = ""
    card: str = ""


def companions(base: Path, model: Path, facts: Facts) -> None:
    """Write into `model`, where the weight files stand, all that goes with them.

    BadInput, naming the file, for one of the base that is garbage, or a link to somewhere else. Whoever was killed here
    may begin again.
    """
    for stale in model.glob(".*.tmp"):
        stale.unlink()
    chat = load_template(facts.template) if facts.template else None
    for path in own_files(base, (*_COPIED, *LICENCES)):
        _copy(path, model / path.name, chat is not None)
    if chat is not None:
        _set_template(model, chat)
    _part_processor(model)
    write_json(model / CONFIG, _config(base, _written(model)))
    write_json(model / GENERATION, _generation(base, model, chat or own_template(model)))
    write_atomic(model / CARD, facts.card)


def _copy(path: Path, out: Path, new_template: bool) -> None:
    if path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json", "tekken.json"):
        told = read_json(path)
        if not isinstance(told, dict):
            raise BadInput(f"{path}: no object")
        gone = (*_LEFT_OUT, *(("chat_template",) if new_template else ()))
        told = {key: value for key, value in told.items() if key not in gone}
        write_json(out, _of_both(told) if path.name == TOKENIZER else told)
        return
    with open(path, "rb") as source, atomic_file(out) as target:
        shutil.copyfileobj(source, target)


def _of_both(settings: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's settings by the names that transformers 4 has for them, which 5 knows."""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings = {"model_input_names": ["input_ids", "attention_mask"], **settings}
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _part_processor(model: Path) -> None:
    """The image processor in a file of its own, too."""
    if (whole := model / PROCESSOR).exists() and not (model / IMAGES).exists():
        told = read_json(whole)
        if isinstance(images := told.get("image_processor"), dict):
            write_json(model / IMAGES, {**images, "processor_class": told.get("processor_class")})


def _set_template(model: Path, chat: ChatTemplate) -> None:
    for old in ("chat_template.json", TEMPLATE_FILE):
        (model / old).unlink(missing_ok=True)
    write_atomic(model / CHAT, chat.jinja())
    if (assembly := model / ASSEMBLY).exists():
        write_json(assembly, {**read_json(assembly), "template": keep_template(chat, model)})


def own_template(model: Path) -> ChatTemplate | None:
    """That of an assembled model."""
    told = read_json(model / ASSEMBLY).get("template") if (model / ASSEMBLY).exists() else None
    return load_template(str(model / TEMPLATE_FILE)) if told == TEMPLATE_FILE else TEMPLATES.get(str(told))


def _written(model: Path) -> dict[str, Stored]:
    names = [SINGLE]
    if (model / INDEX).exists():
        names = sorted(set(read_json(model / INDEX)["weight_map"].values()))
    return {tensor.name: tensor for name in names for tensor in WeightFile.read(model / name).tensors}


def _config(base: Path, written: Mapping[str, Stored]) -> dict[str, Any]:
    """The base's configuration, as the written weights are: their dtype, the rows of their vocabulary."""
    path = base / CONFIG
    config = read_json(path)
    if not isinstance(config, dict):
        raise BadInput(f"{path}: no object")
    embeddings = next((tensor for name, tensor in written.items() if name.endswith("embed_tokens.weight")), None)
    if embeddings is None:
        raise BadInput(f"{base}: its weights hold no embed_tokens.weight; give a language model, or one that sees")
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    parts = [config, *(part for key, part in config.items() if key.endswith("_config") and isinstance(part, dict))]
    dtype = str(embeddings.dtype).removeprefix("torch.")
    for part in parts:
        # weights that were in 4 bits are plain by now
        for name in (*_LEFT_OUT, "quantization_config"):
            part.pop(name, None)
        part["dtype"] = dtype
        rope = part.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            part["rope_theta"] = rope["rope_theta"]
            if rope.get("rope_type", "default") != "default":
                part["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        if "torch_dtype" in part:
            part["torch_dtype"] = dtype
    # training switches it off; whoever generates wants it
    text["use_cache"] = True
    config.update({"use_cache": True} if "use_cache" in config else {})
    text["vocab_size"] = embeddings.rows
    if "vocab_size" in config:
        config["vocab_size"] = embeddings.rows
    # readers differ in which of the two they look at, and some drop a head that is there where it says tied
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    head = next((tensor for name, tensor in written.items() if name.endswith("lm_head.weight")), None)
    if head is not None and not _equal(head, embeddings):
        tied = False
    if tied is not None:
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = bool(tied)
    return config


def _equal(one: Stored, other: Stored) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(torch.equal(a, b) for a, b in zip(one.blocks(), other.blocks(), strict=True))


def _generation(base: Path, model: Path, chat: ChatTemplate | None) -> dict[str, Any]:
    """The base's settings, with the tokens that begin, end and pad as the tokenizer and the template have them."""
    path = base / GENERATION
    told = read_json(path) if path.exists() else {}
    if not isinstance(told, dict):
        raise BadInput(f"{path}: no object")
    config = read_json(model / CONFIG)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    told = {key: value for key, value in told.items() if key not in _LEFT_OUT}
    if not told.get("do_sample"):
        told = {key: value for key, value in told.items() if key not in _DRAWING} | {"do_sample": False}
    special = _special(model)
    ids = _token_ids(model, {*special.values(), *([chat.stop] if chat and chat.stop else [])})
    known = {name: ids.get(special.get(name, "")) for name in _SPECIAL}
    stop = ids.get(chat.stop) if chat else None
    before = end_tokens(told.get("eos_token_id", text.get("eos_token_id")), path)
    ends = list(dict.fromkeys(token for token in (*before, known["eos_token"], stop) if token is not None))
    begin = known["bos_token"] if known["bos_token"] is not None else told.get("bos_token_id", text.get("bos_token_id"))
    pad = known["pad_token"] if known["pad_token"] is not None else told.get("pad_token_id", config.get("pad_token_id"))
    found = {"bos_token_id": begin, "pad_token_id": ends[0] if pad is None and ends else pad}
    found["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return {**told, **{key: value for key, value in found.items() if value is not None}}


def end_tokens(told: Any, path: Path) -> list[int]:
    """What a configuration at `path` says of the tokens that end an answer: none, one or several."""
    ends = [] if told is None else told if isinstance(told, list) else [told]
    if any(type(token) is not int for token in ends):
        raise BadInput(f"{path}: eos_token_id {plain(str(told))}: a token's number is wanted, or a list of them")
    return ends


def _special(model: Path) -> dict[str, str]:
    """bos_token, eos_token and pad_token, as texts."""
    told: dict[str, Any] = {}
    for name in ("special_tokens_map.json", TOKENIZER):
        told |= read_json(model / name) if (model / name).exists() else {}
    texts = {name: token.get("content") if isinstance(token := told.get(name), dict) else token for name in _SPECIAL}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _token_ids(model: Path, wanted: set[str]) -> dict[str, int]:
    """Numbers of tokens by their texts; those that no file tells are left out."""
    settings = read_json(model / TOKENIZER) if (model / TOKENIZER).exists() else {}
    decoder = settings.get("added_tokens_decoder")
    entries = decoder.items() if isinstance(decoder, dict) else ()
    found = {str(each.get("content")): int(n) for n, each in entries if isinstance(each, dict) and _NUMBER.fullmatch(n)}
    path = model / "tokenizer.json"
    if wanted - found.keys() and path.exists():
        found |= _added(path)
    if wanted - found.keys() and path.exists():
        found |= _vocabulary(path, wanted)
    return {token: found[token] for token in wanted if token in found}


def _added(path: Path) -> dict[str, int]:
    """The added tokens of a tokenizer.json whose head holds them all: the whole takes ten times its size in memory."""
    with open(path, "rb") as handle:
        head = handle.read(_HEAD).decode("utf-8", "replace")
    try:
        added, _ = json.JSONDecoder().raw_decode(head, head.index("[", head.index('"added_tokens"')))
        return {each["content"]: int(each["id"]) for each in added}
    except (KeyError, RecursionError, TypeError, ValueError):
        return {}


def _vocabulary(path: Path, wanted: set[str]) -> dict[str, int]:
    """Those of a tokenizer.json, in which a vocabulary maps texts to numbers, or is a list of (text, score)."""
    told = read_json(path, max_bytes=256 * 2**20)
    try:
        words = told["model"]["vocab"]
        pairs = words.items() if isinstance(words, dict) else ((word, number) for number, (word, _) in enumerate(words))
        found = {word: int(number) for word, number in pairs if word in wanted}
        return found | {each["content"]: int(each["id"]) for each in told["added_tokens"]}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadInput(f"{path}: no tokenizer that the package tokenizers wrote") from None
