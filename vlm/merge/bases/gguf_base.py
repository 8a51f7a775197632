"""A language model in one GGUF file as plain weights under transformers' names, equal to what transformers loads of it.

Of llama.cpp's architectures those that `vlm assemble` takes: llama, which Mistral is there too, and gemma3.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.extras import require
from vlm.merge.bases.gguf_file import GgufFile, Packed
from vlm.merge.bases.plain_model import Made, MadeFile, PlainModel
from vlm.merge.layout import SINGLE

# transformers' names and shapes: vocabulary, hidden, feed-forward, queries, keys, a head (D); llama.cpp's names
_WHOLE = {
    "model.embed_tokens.weight": ("token_embd.weight", "VH"),
    "model.norm.weight": ("output_norm.weight", "H"),
    "lm_head.weight": ("output.weight", "VH"),
}
_LAYER = {
    "input_layernorm": ("attn_norm", "H"),
    "self_attn.q_proj": ("attn_q", "QH"),
    "self_attn.k_proj": ("attn_k", "KH"),
    "self_attn.v_proj": ("attn_v", "KH"),
    "self_attn.o_proj": ("attn_output", "HQ"),
    "post_attention_layernorm": ("ffn_norm", "H"),
    "mlp.gate_proj": ("ffn_gate", "FH"),
    "mlp.up_proj": ("ffn_up", "FH"),
    "mlp.down_proj": ("ffn_down", "HF"),
}
_GEMMA_LAYER = {
    **_LAYER,
    "self_attn.q_norm": ("attn_q_norm", "D"),
    "self_attn.k_norm": ("attn_k_norm", "D"),
    "post_attention_layernorm": ("post_attention_norm", "H"),
    "pre_feedforward_layernorm": ("ffn_norm", "H"),
    "post_feedforward_layernorm": ("post_ffw_norm", "H"),
}
_LAYERS = {"llama": _LAYER, "gemma3": _GEMMA_LAYER}
# configuration keys; after the first ones an architecture's own
_KEYS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "rope_theta": "rope.freq_base",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}
_OWN_KEYS = {
    "llama": {"head_dim": "rope.dimension_count"},
    "gemma3": {"head_dim": "attention.key_length", "sliding_window": "attention.sliding_window"},
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_INTEGERS = ("num_hidden_layers", "intermediate_size", "hidden_size", "num_attention_heads", "vocab_size")
_MOST_LAYERS = 1 << 12
# of a file that is written, and of the numbers of a block of work
_FILE_BYTES, _NUMBERS = 4 << 30, 1 << 21


@dataclass(frozen=True)
class _Source:
    """A GGUF file and what is done to its tensors on the way."""

    file: GgufFile
    dtype: torch.dtype

    @cached_property
    def architecture(self) -> str:
        found = self.file.told.get("general.architecture")
        if not isinstance(found, str) or found not in _LAYERS:
            raise self.wrong(f"its architecture {found} is none of {', '.join(_LAYERS)}")
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """As transformers makes it of the file."""
        told, kind = self.file.told, self.architecture
        keys = {name: f"{kind}.{key}" for name, key in (_KEYS | _OWN_KEYS[kind]).items()}
        keys |= {f"{name}_token_id": f"tokenizer.ggml.{key}_token_id" for name, key in _SPECIAL.items()}
        found = {name: told[key] for name, key in keys.items() if key in told}
        found.setdefault("vocab_size", told.get("tokenizer.ggml.tokens"))
        found.setdefault("num_key_value_heads", found.get("num_attention_heads"))
        for name in (*_INTEGERS, "num_key_value_heads"):
            if type(found.get(name)) is not int or not 0 < found[name] < 2**31:
                raise self.wrong(f"{keys.get(name, name)} is {found.get(name)}, no positive whole number")
        heads, width = found["num_attention_heads"], found["hidden_size"]
        head = found.setdefault("head_dim", width // heads)
        if type(head) is not int or head < 2 or head % 2 or found["num_hidden_layers"] > _MOST_LAYERS:
            raise self.wrong(f"heads of {head} numbers in {found['num_hidden_layers']} layers")
        if told.get(f"{kind}.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in self.file.tensors:
            raise self.wrong("its positions are scaled (rope), which transformers drops; give the model's own folder")
        found["tie_word_embeddings"] = "output.weight" not in self.file.tensors
        # transformers tells Mistral by its name
        return found | {"model_type": self._model_type}

    @property
    def _model_type(self) -> str:
        if self.architecture == "gemma3":
            return "gemma3_text"
        return "mistral" if self.file.told.get("general.name") == "mistral" else "llama"

    @cached_property
    def _lengths(self) -> dict[str, int]:
        """By the letters of the tables."""
        config = self.config
        head = config["head_dim"]
        return {
            "V": config["vocab_size"],
            "H": config["hidden_size"],
            "F": config["intermediate_size"],
            "Q": head * config["num_attention_heads"],
            "K": head * config["num_key_value_heads"],
            "D": head,
        }

    def tensors(self) -> list[Made]:
        """In the model's order; BadInput unless they are just those that it has, in their shapes."""
        names = dict(_WHOLE)
        if self.config["tie_word_embeddings"]:
            del names["lm_head.weight"]
        for i in range(self.config["num_hidden_layers"]):
            for name, (stored, shape) in _LAYERS[self.architecture].items():
                names[f"model.layers.{i}.{name}.weight"] = (f"blk.{i}.{stored}.weight", shape)
        known = {stored for stored, _ in names.values()}
        if odd := next((name for name in self.file.tensors if name not in known), None):
            raise self.wrong(f"{plain(odd)} is no weight of {self.architecture} as transformers has it")
        return [self._made(name, stored, shape) for name, (stored, shape) in names.items()]

    def _made(self, name: str, stored: str, letters: str) -> Made:
        tensor = self.file.tensors.get(stored)
        if tensor is None:
            raise self.wrong(f"lacks {stored}")
        shape = tuple(self._lengths[letter] for letter in letters)
        if tensor.shape != shape:
            raise self.wrong(f"{stored} of shape {tensor.shape} should be of {shape}")
        return Made(name, self.dtype, shape, self.file.path, stored, partial(self._blocks, tensor))

    def _blocks(self, tensor: Packed) -> Iterator[torch.Tensor]:
        rows = math.prod(tensor.shape[:-1])
        head = self._turned(tensor)
        step = max(1, _NUMBERS // tensor.shape[-1] // head) * head
        with open(self.file.path, "rb", buffering=0) as handle:
            handle.seek(tensor.begin)
            for first in range(0, rows, step):
                count = min(step, rows - first)
                values = _unpacked(handle.read(count * tensor.row_bytes), count, tensor)
                if head > 1:
                    # llama.cpp has the two halves of a rotary head alternate
                    values = values.view(-1, head // 2, 2, tensor.shape[-1]).transpose(1, 2).reshape(values.shape)
                if self.architecture == "gemma3" and tensor.name.endswith("norm.weight"):
                    values = values - 1
                yield values.to(self.dtype)

    def _turned(self, tensor: Packed) -> int:
        """Rows of a head whose order llama.cpp changed, else 1."""
        queries = re.fullmatch(r"blk\.\d+\.attn_[qk]\.weight", tensor.name)
        return self._lengths["D"] if queries and self.architecture == "llama" else 1

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.file.path}: {plain(what)}")


def _unpacked(data: bytes, rows: int, tensor: Packed) -> torch.Tensor:
    import gguf
    import numpy

    packed = numpy.frombuffer(data, dtype=numpy.uint8).reshape(rows, tensor.row_bytes)
    with numpy.errstate(all="ignore"):
        # what is no number is refused by name when it is written
        values = gguf.dequantize(packed, gguf.GGMLQuantizationType(tensor.type))
    return torch.from_numpy(values.astype(numpy.float32)).view(rows, tensor.shape[-1])


def _sizes(path: Path) -> Mapping[int, tuple[int, int]]:
    """Of the blocks of the types that can be made plain."""
    require("gguf", "models", f"{path}: a GGUF file")
    import gguf
    import numpy

    found = {}
    for kind, size in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(numpy.zeros((1, size[1]), dtype=numpy.uint8), kind)
        except NotImplementedError:
            continue
        found[int(kind)] = size
    return found


def gguf_file(path: Path) -> GgufFile:
    """BadInput, naming file and tensor, for one that is unsound, or without the package gguf."""
    return GgufFile.read(path, _sizes(path))


def quantisations(file: GgufFile) -> str:
    """The types of a file's tensors, as llama.cpp names them."""
    import gguf

    return ", ".join(sorted({gguf.GGMLQuantizationType(tensor.type).name for tensor in file.tensors.values()}))


def gguf_model(file: GgufFile, dtype: torch.dtype | None) -> PlainModel:
    """The file's model with plain weights in `dtype`, None: float32, in which they were packed.

    BadInput, naming file and tensor, for another architecture, or tensors that are not just its own.
    """
    source = _Source(file, dtype or torch.float32)
    files: list[list[Made]] = [[]]
    size = 0
    for made in source.tensors():
        size += math.prod(made.shape) * made.dtype.itemsize
        if size > _FILE_BYTES and files[-1]:
            files.append([])
            size = math.prod(made.shape) * made.dtype.itemsize
        files[-1].append(made)
    names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    names = [SINGLE] if len(files) == 1 else names
    metadata = {"format": "pt"}
    made_files = [MadeFile(name, each, metadata) for name, each in zip(names, files, strict=True)]
    return PlainModel(made_files, source.config)
