"""What is done to the language model's blocks before training: checkpointing, compiling, fused kernels."""

import os
import shutil
from functools import partial
from importlib import import_module

import torch
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from shards.errors import BadInput
from shards.extras import require

LIGER_FAMILIES = {"gemma3_text": "geglu", "llama": "swiglu", "mistral": "swiglu", "mixtral": "swiglu"}
"""Families that Liger has kernels for, and its name of their gated MLP."""


def prepare_blocks(
    llava: LlavaForConditionalGeneration, checkpoint_blocks: int = 0, compile_blocks: bool = False, liger: bool = False
) -> None:
    """Set the options of section `model`, in place; call it on the bare model, before an adapter is put on.

    `checkpoint_blocks` n recomputes every n-th block's activations in the backward pass: 0 none, 1 all. A tower that is
    trained follows it. `compile_blocks` compiles each block at its first call. `liger` takes Liger's RMSNorm, gated MLP
    and rotary embedding. Raises BadInput where an option cannot work here.
    """
    family = str(llava.model.language_model.config.model_type)
    check_blocks(family, checkpoint_blocks, compile_blocks, liger)
    if liger:
        _apply_liger(llava.model.language_model, family)
    for stack in (language_blocks(llava), vision_blocks(llava)):
        for number, block in enumerate(stack):
            block.gradient_checkpointing = bool(checkpoint_blocks) and number % checkpoint_blocks == 0
            # the embeddings of a frozen model want no gradient: a re-entrant checkpoint would lose the adapters' own
            setattr(block, "_gradient_checkpointing_func", partial(checkpoint, use_reentrant=False))  # noqa: B010
    if compile_blocks:
        for block in language_blocks(llava):
            # rows differ in length
            block.compile(dynamic=True)


def check_blocks(family: str, checkpoint_blocks: int, compile_blocks: bool, liger: bool) -> None:
    """Raise BadInput where an option of section `model` cannot work with this family of language models, or here."""
    if checkpoint_blocks < 0:
        raise BadInput(f"model.checkpoint_blocks: {checkpoint_blocks} is below 0; 0 none, 1 all, n every n-th block")
    if compile_blocks and not _compiler():
        raise BadInput("model.compile_blocks: no compiler; put g++ (on a GPU gcc) on PATH, or set it to false")
    if not liger:
        return
    if family not in LIGER_FAMILIES:
        raise BadInput(f"model.liger: no kernels for {family}; they are for {', '.join(LIGER_FAMILIES)}")
    if not torch.cuda.is_available():
        raise BadInput("model.liger: its kernels need a CUDA GPU; set model.liger=false")
    require("liger_kernel", "gpu", "model.liger")


def _compiler() -> str | None:
    # on a GPU it is Triton that compiles, its launcher in C
    names = ("cc", "gcc", "clang") if torch.cuda.is_available() else ("g++", "clang++")
    own = os.environ.get("CC" if torch.cuda.is_available() else "CXX")
    return next(filter(None, map(shutil.which, [own] if own else names)), None)


def language_blocks(llava: LlavaForConditionalGeneration) -> list[GradientCheckpointingLayer]:
    """The language model's decoder layers, in order."""
    return _blocks(llava.model.language_model)


def vision_blocks(llava: LlavaForConditionalGeneration) -> list[GradientCheckpointingLayer]:
    """The vision tower's encoder layers, in order."""
    return _blocks(llava.model.vision_tower)


def _blocks(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _apply_liger(language_model: PreTrainedModel, family: str) -> None:
    liger_kernel = import_module("liger_kernel.transformers")

    apply = getattr(liger_kernel, f"apply_liger_kernel_to_{family}")
    parts = {"rope": True, "rms_norm": True, LIGER_FAMILIES[family]: True}
    apply(model=language_model, cross_entropy=False, fused_linear_cross_entropy=False, **parts)
