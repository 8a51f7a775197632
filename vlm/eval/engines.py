"""The engines by name, made from a recipe."""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config import Recipe
from vlm.eval.asking import Asking
from vlm.eval.config import QUANTISED
from vlm.eval.engine import Engine
from vlm.eval.memory import Peak

if TYPE_CHECKING:
    from shards.chat import ChatServer


@dataclass(frozen=True)
class Kind:
    """How an engine is made, of a recipe and its adapter's folder, and what it is like.

    `check` raises BadInput for what can be told before: no weight is read, nothing is asked.
    `apart`: an answer does not depend on the questions that are answered with it. `chunk` is how many questions are
    answered between two writes of the journal, `peak_memory` what this process has needed so far, where it is known.
    `local`: the model's files are here.
    """

    make: Callable[[Recipe, Asking, Path | None], Engine]
    check: Callable[[Recipe], None]
    apart: bool
    chunk: Callable[[Recipe], int]
    peak_memory: Callable[[], Peak | None]
    local: bool


def _check_hf(recipe: Recipe) -> None:
    from vlm.model.adapters.quantised import require_bitsandbytes
    from vlm.model.assemble import Assembly
    from vlm.model.load import base_folder

    if recipe.eval.quantize == QUANTISED:
        require_bitsandbytes(f"eval.quantize: {QUANTISED}")
    Assembly.read(base_folder(recipe.model)).chat(recipe.data.template)


def _hf(recipe: Recipe, asking: Asking, adapter: Path | None) -> Engine:
    import torch

    from vlm.data.documents import Tokeniser
    from vlm.data.images import Pixels
    from vlm.eval.generate import Answerer
    from vlm.model.adapter import load_answering
    from vlm.model.adapters.quantised import quantise
    from vlm.model.assemble import Assembly
    from vlm.model.load import load_model, load_tokenizer, model_folder

    _check_hf(recipe)
    folder = model_folder(recipe.model)
    if recipe.engine.threads:
        torch.set_num_threads(recipe.engine.threads)
    assembly = Assembly.read(folder)
    model = load_model(folder, recipe.model.dtype, packed=False)
    if recipe.eval.quantize == QUANTISED:
        model = quantise(model)
    if adapter:
        model = load_answering(model, adapter)
    if torch.cuda.is_available():
        model = model.to("cuda")
    tokenizer = load_tokenizer(folder)
    tokeniser = Tokeniser(tokenizer, assembly.chat(recipe.data.template), assembly.image_tokens)
    longest, config = asking.max_new_tokens, recipe.eval
    return Answerer(model, tokenizer, tokeniser, Pixels.of(folder), longest, config.batch_size, config.decoding)


def _hf_peak() -> Peak:
    import torch

    if torch.cuda.is_available():
        return Peak(int(torch.cuda.max_memory_allocated()), int(torch.cuda.max_memory_reserved()))
    # Linux counts in KiB
    return Peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _chat(recipe: Recipe) -> "ChatServer":
    from shards.chat import ChatServer

    return ChatServer(recipe.eval.server_options("eval"))


def _check_server(recipe: Recipe) -> None:
    _chat(recipe)


def _server(recipe: Recipe, asking: Asking, adapter: Path | None) -> Engine:
    from vlm.eval.server import ServerEngine

    config = recipe.eval
    return ServerEngine(_chat(recipe), asking.max_new_tokens, config.decoding, config.concurrency)


KINDS = {
    "hf": Kind(_hf, _check_hf, False, lambda recipe: 2 * recipe.eval.batch_size, _hf_peak, local=True),
    # so that a kill loses little that was paid for
    "server": Kind(_server, _check_server, True, lambda recipe: 64, lambda: None, local=False),
}
