"""A transformers model whose weights stay in their files: a layer reads its own as it computes, a block of rows at a
time, and adds to its output what an adapter adds beside it.

Nothing is merged here: it is what a merge is proven against. The formulas are those of PEFT's forward passes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from shards.errors import BadInput, plain
from vlm.merge.changes import Blend, Change, LowRank, Scaled, Several
from vlm.merge.layout import Layout, Stored
from vlm.merge.stream import Source

# of a block of rows, once it is float32
_BLOCK_BYTES = 16 << 20
# names in memory and in files, where transformers converts between them
_ALIASES = ((".mlp.gate.", ".block_sparse_moe.gate."),)


class Weights:
    """A folder's weights and what `source` changes of them, read when asked for; a context that closes its files.

    `progress` hears how many bytes were read since it last did. `used` are the parameters that were asked for.
    """

    def __init__(self, layout: Layout, source: Source | None, progress: Callable[[int], None]) -> None:
        self.layout, self.source, self._progress = layout, source, progress
        self.used: dict[str, Stored] = {}
        self._files: dict[Path, int] = {}
        self._buffer = bytearray()

    def find(self, parameter: str) -> Stored | None:
        """Where a parameter of the model in memory is stored."""
        names = (parameter, *(parameter.replace(loaded, stored) for loaded, stored in _ALIASES))
        return next((found for name in names if (found := self.layout.tensors.get(name))), None)

    def stored(self, parameter: str, shape: Sequence[int]) -> Stored:
        """As `find`, for the model's use; BadInput unless it is there in the shape that the configuration gives it."""
        found = self.find(parameter)
        if found is None:
            raise BadInput(f"{self.layout.folder}: lacks {plain(parameter)}, a weight of its model")
        if found.shape != tuple(shape) or not found.dtype.is_floating_point:
            raise BadInput(
                f"{found.path}: {plain(found.name)} of shape {found.shape} holds {found.dtype}; config.json makes it "
                f"floats of shape {tuple(shape)}"
            )
        self.used[parameter] = found
        return found

    def shape(self, stored: Stored) -> tuple[int, ...]:
        """With the rows that a change adds."""
        return (self.source and self.source.shape(stored)) or stored.shape

    def changed(self, stored: Stored) -> bool:
        """Whether something is done to a weight."""
        return self.source is not None and self.source.shape(stored) is not None

    def changes(self, stored: Stored) -> list[Change]:
        """What is done to it, one after the other."""
        return _flat(self.source.change(stored)) if self.source and self.changed(stored) else []

    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """Rows [first, last) as float32, unchanged; those that the file has not are zero."""
        count = max(0, min(last, stored.rows) - first)
        size = count * stored.row_bytes
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        self._read(stored, first * stored.row_bytes, view)
        found = torch.zeros(last - first, *stored.shape[1:])
        if size:
            found[:count] = torch.frombuffer(view, dtype=stored.dtype).view(count, *stored.shape[1:])
        return found

    def whole(self, stored: Stored, scaled: bool = True) -> Tensor:
        """A small parameter, float32, with its changes, without factors where not `scaled`."""
        shape = self.shape(stored)
        found = self.rows(stored, 0, shape[0] if shape else 1)
        for change in self.changes(stored):
            if scaled or not isinstance(change, Scaled):
                change.apply(found if found.ndim < 2 else found.view(found.shape[0], -1), 0)
        return found.view(shape)

    def _read(self, stored: Stored, offset: int, view: memoryview) -> None:
        if stored.path not in self._files:
            self._files[stored.path] = os.open(stored.path, os.O_RDONLY)
        done = 0
        while done < len(view):
            count = os.preadv(self._files[stored.path], [view[done:]], stored.begin + offset + done)
            if not count:
                raise BadInput(f"{stored.path}: ends within {plain(stored.name)}")
            done += count
        self._progress(done)

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            os.close(file)
        self._files, self._buffer = {}, bytearray()


def _flat(change: Change) -> list[Change]:
    return [each for one in change.each for each in _flat(one)] if isinstance(change, Several) else [change]


@dataclass(frozen=True)
class _Block:
    """Rows of a linear layer from `first` on, and what it makes of its inputs with them."""

    x_TC: Tensor
    w_nC: Tensor
    y_Tn: Tensor
    bias_n: Tensor
    first: int

    @classmethod
    def of(cls, x_TC: Tensor, w_nC: Tensor, bias_n: Tensor, first: int) -> "_Block":
        return cls(x_TC, w_nC, (x_TC @ w_nC.T).add_(bias_n), bias_n, first)

    def beside(self, change: Change) -> "_Block":
        """With an adapter's part beside the weights."""
        last = self.first + len(self.w_nC)
        if isinstance(change, Several):
            block = self
            for one in change.each:
                block = block.beside(one)
            return block
        if isinstance(change, Blend):
            parts = [self.beside(one).y_Tn - self.y_Tn for one in change.changes]
            y_Tn = self.y_Tn + sum(weight * part for weight, part in zip(change.weights, parts, strict=True))
            return replace(self, y_Tn=y_Tn)
        if isinstance(change, LowRank):
            return self._low_rank(change, change.b_OR[self.first : last])
        if isinstance(change, Scaled):
            block = self
            if change.by_input_C is not None:
                block = _Block.of(self.x_TC * change.by_input_C, self.w_nC, self.bias_n, self.first)
            scaled = block.y_Tn if change.by_output_O is None else block.y_Tn * change.by_output_O[self.first : last]
            return replace(block, y_Tn=scaled)
        # other weights
        w_nC = self.w_nC.clone()
        change.apply(w_nC, self.first)
        return _Block.of(self.x_TC, w_nC, self.bias_n, self.first)

    def _low_rank(self, change: LowRank, b_nR: Tensor) -> "_Block":
        y_Tn = self.y_Tn.addmm(self.x_TC @ change.a_RC.T, b_nR.T, alpha=change.scale)
        if change.magnitude_O is not None:
            lengths_n = torch.linalg.norm(self.w_nC.addmm(b_nR, change.a_RC, alpha=change.scale), dim=1)
            own_n = change.magnitude_O[self.first : self.first + len(b_nR)]
            y_Tn = (y_Tn - self.bias_n) * (own_n / lengths_n) + self.bias_n
        return replace(self, y_Tn=y_Tn)


class StreamedLinear(nn.Module):
    """x → x Wᵀ + bias with the changes of `weight` beside W; names are those of parameters.

    A head that is the embeddings has their changes: of other adapters `Adapter.check` lets none pass.
    """

    def __init__(self, weights: Weights, weight: str, shape: Sequence[int], bias: str | None = None) -> None:
        super().__init__()
        self.weights, self.stored = weights, weights.stored(weight, shape)
        self.size, self.columns = weights.shape(self.stored)
        # a learned factor of the outputs comes after the bias
        self.bias = torch.zeros(self.size)
        if bias is not None:
            self.bias = weights.whole(weights.stored(bias, shape[:1]), scaled=False)

    def forward(self, x: Tensor) -> Tensor:
        flat_TC = x.reshape(-1, x.shape[-1])
        y_TO = flat_TC.new_empty(flat_TC.shape[0], self.size)
        for first, part in self.blocks(flat_TC):
            y_TO[:, first : first + part.shape[1]] = part
        return y_TO.view(*x.shape[:-1], self.size)

    def blocks(self, x_TC: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first output, outputs (T, n)) for one block of rows after the other."""
        changes = self.weights.changes(self.stored)
        step = max(1, _BLOCK_BYTES // 4 // self.columns)
        for first in range(0, self.size, step):
            last = min(first + step, self.size)
            block = _Block.of(x_TC, self.weights.rows(self.stored, first, last), self.bias[first:last], first)
            for change in changes:
                block = block.beside(change)
            yield first, block.y_Tn


class StreamedEmbedding(nn.Module):
    """Rows of a table by their numbers, times `factor`."""

    def __init__(self, weights: Weights, weight: str, shape: Sequence[int], factor: float) -> None:
        super().__init__()
        self.weights, self.stored, self.factor = weights, weights.stored(weight, shape), factor
        self.size, self.columns = weights.shape(self.stored)

    def forward(self, ids: Tensor) -> Tensor:
        known, places = torch.unique(ids, return_inverse=True)
        changes = self.weights.changes(self.stored)
        rows = torch.empty(len(known), self.columns)
        for i, number in enumerate(known.tolist()):
            rows[i : i + 1] = self.weights.rows(self.stored, number, number + 1)
            for change in changes:
                change.apply(rows[i : i + 1], number)
        return rows[places] * self.factor


class StreamedExperts(nn.Module):
    """Mixtral's feed-forward networks, of which a token takes a few; the files name each expert's matrices apart."""

    def __init__(self, weights: Weights, name: str, down_EHI: Tensor, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        prefix = name.replace(".mlp.experts", ".block_sparse_moe.experts")
        number, hidden, inner = down_EHI.shape
        shapes = {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
        self.experts = nn.ModuleList(
            nn.ModuleDict({w: StreamedLinear(weights, f"{prefix}.{i}.{w}.weight", shapes[w]) for w in shapes})
            for i in range(number)
        )

    def forward(self, x_TC: Tensor, chosen_TK: Tensor, share_TK: Tensor) -> Tensor:
        y_TC = torch.zeros_like(x_TC)
        for i, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen_TK == i)
            if len(tokens):
                x = x_TC[tokens]
                y = expert["w2"](self.activation(expert["w1"](x)) * expert["w3"](x))  # type: ignore[index]
                y_TC.index_add_(0, tokens, y * share_TK[tokens, place, None])
        return y_TC


class StreamedModel:
    """What computes the last hidden states, and the head that makes logits of them.

    BadInput unless the weights are those of the folder's configuration, and each that `weights` changes is used.
    """

    def __init__(self, weights: Weights) -> None:
        model = empty_model(weights.layout.folder)
        shape, embedded = (each.weight.shape for each in (model.get_output_embeddings(), model.get_input_embeddings()))
        names = {id(module): name for name, module in model.named_modules()}
        head, embeddings = (names[id(each)] for each in (model.get_output_embeddings(), model.get_input_embeddings()))
        own_head = weights.find(f"{head}.weight") is not None
        bias = f"{head}.bias" if weights.find(f"{head}.bias") else None
        self.head = StreamedLinear(weights, f"{head if own_head else embeddings}.weight", shape, bias)
        model.set_submodule(head, nn.Identity(), strict=True)
        _stream(model, weights)
        _check_used(weights, self.head.size, weights.shape(weights.stored(f"{embeddings}.weight", embedded))[0])
        self.config = model.config
        self._body = model.base_model.eval()

    def hidden(self, ids_BT: Tensor, pixels: Tensor | None) -> Tensor:
        """(B, T, hidden), float32. Rows may end in anything: no token sees a later one."""
        images = {} if pixels is None else {"pixel_values": pixels}
        found: Tensor = self._body(input_ids=ids_BT, use_cache=False, **images).last_hidden_state
        return found


def empty_model(folder: Path) -> Any:
    """The model as its configuration describes it, parameters without memory. No code of the folder's is run."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

    # torch takes the parameter that a hook returns, whatever its annotation says
    hook = register_module_parameter_registration_hook(_without_memory)  # type: ignore[arg-type]
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # the weights as they are read are not quantised
        vars(config).pop("quantization_config", None)
        if config.model_type == "llava":
            return LlavaForConditionalGeneration(config)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        # each configuration checks itself in its own way, and raises what it likes
        said = plain(" ".join(str(error).split()))
        raise BadInput(f"{folder}: its config.json is of no model that can be proven ({said})") from error
    finally:
        hook.remove()


def _without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)


def _stream(model: nn.Module, weights: Weights) -> None:
    """Put modules that read in the place of large ones, and small parameters in memory."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            bias = None if module.bias is None else f"{name}.bias"
            linear = StreamedLinear(weights, f"{name}.weight", module.weight.shape, bias)
            model.set_submodule(name, linear, strict=True)
        elif isinstance(module, nn.Embedding):
            factor = float(getattr(module, "scalar_embed_scale", 1.0))
            table = StreamedEmbedding(weights, f"{name}.weight", module.weight.shape, factor)
            model.set_submodule(name, table, strict=True)
        elif type(module).__name__ == "MixtralExperts":
            experts = StreamedExperts(weights, name, module.down_proj, module.act_fn)
            model.set_submodule(name, experts, strict=True)
    for name, module in model.named_modules():
        for own, empty in list(module.named_parameters(recurse=False)):
            value = weights.whole(weights.stored(f"{name}.{own}" if name else own, empty.shape))
            setattr(module, own, nn.Parameter(value, requires_grad=False))


def _check_used(weights: Weights, head: int, embeddings: int) -> None:
    """BadInput where a change would not be seen, or the vocabulary is of two sizes."""
    layout, used = weights.layout, {stored.name for stored in weights.used.values()}
    for stored in layout.tensors.values():
        if stored.name not in used and weights.changed(stored):
            raise BadInput(
                f"{stored.path}: {plain(stored.name)} would be changed, but the model of config.json has no such weight"
            )
    if head != embeddings:
        raise BadInput(
            f"{layout.folder}: embeddings of {embeddings} tokens and a head of {head}; new tokens must be added to both"
        )
