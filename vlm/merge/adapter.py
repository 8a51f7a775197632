"""An adapter folder in PEFT's form as changes of the base's weights, each read from the disk when it is asked for."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadInput, plain
from shards.files import read_json, sha256_file
from vlm.merge.alphas import alphas
from vlm.merge.changes import Added, Change, LowRank, Rows, Scaled, Several, Whole, finite
from vlm.merge.layout import Layout, Stored, WeightFile

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# what PEFT adds to a module's name, by what it is
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|B\.bias|embedding_A|embedding_B|magnitude_vector)"
)
_PARTS = {
    "A.weight": ("weight", "A"),
    "B.weight": ("weight", "B"),
    "B.bias": ("bias", "bias"),
    "embedding_A": ("weight", "A"),
    "embedding_B": ("weight", "B"),
    "magnitude_vector": ("weight", "magnitude"),
}
_TOKENS = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta")
_IA3 = re.compile(r"(?P<module>.+)\.ia3_l")
# options of LoraConfig under which the weights mean something else than scale · B A
_FOREIGN = (
    "fan_in_fan_out", "use_qalora", "use_bdlora", "layer_replication", "arrow_config", "alora_invocation_tokens",
    "velora_config", "kasa_config", "monteclora_config", "target_parameters",
)  # fmt: skip
# ways to begin that take something off the base's weights, so that these matrices are to be added to what is left
_RESIDUAL = ("pissa", "corda", "olora", "loftq", "lora_ga")
_HEAD, _EMBEDDINGS = "lm_head.weight", "embed_tokens.weight"
_LOW_RANK = {"A", "B", "magnitude"}
_OTHERS = {"LORA": {"ia3"}, "IA3": {*_LOW_RANK, "bias", "tokens"}}


@dataclass(frozen=True)
class Lora:
    """The matrices of one module: the weight's shape is (O, C), A's (R, C), B's (O, R)."""

    a_RC: torch.Tensor
    b_OR: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None
    is_embedding: bool

    def change(self, base: Stored) -> Change:
        """The change of `base`; DoRA brings an embedding's columns, not its rows, to their lengths."""
        if not self.is_embedding or self.magnitude is None:
            return LowRank(self.a_RC, self.b_OR, self.scale, self.magnitude)
        added = LowRank(self.a_RC, self.b_OR, self.scale)
        squares_C, first = torch.zeros(self.a_RC.shape[1], dtype=torch.float64), 0
        for rows_rC in base.blocks():
            sums_rC = rows_rC.float()
            added.apply(sums_rC, first)
            squares_C += sums_rC.double().square().sum(0)
            first += len(rows_rC)
        return Several([added, Scaled(by_input_C=self.magnitude / squares_C.sqrt().float())])


@dataclass(frozen=True)
class Adapter:
    """`parts` are the tensors that change each parameter of the model, by what PEFT calls them."""

    folder: Path
    config: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Stored]]

    @classmethod
    def read(cls, folder: Path) -> "Adapter":
        """BadInput for a folder that holds something else, or an adapter that cannot be added to weights."""
        if not (folder / WEIGHTS).is_file():
            raise BadInput(f"{folder} holds no {WEIGHTS}; give a checkpoint's adapter folder")
        config = read_json(folder / CONFIG, max_bytes=2**22)
        if not isinstance(config, dict):
            raise BadInput(f"{folder / CONFIG}: garbage; give a checkpoint's adapter folder")
        _check(folder, config)
        parts: dict[str, dict[str, Stored]] = defaultdict(dict)
        for stored in WeightFile.read(folder / WEIGHTS).tensors:
            for parameter, part in _places(folder, stored):
                if part in _OTHERS[config["peft_type"]]:
                    raise BadInput(
                        f"{stored.path}: {plain(stored.name)} is no tensor of a {config['peft_type']} adapter"
                    )
                if part in parts[parameter]:
                    raise BadInput(
                        f"{stored.path}: {plain(stored.name)} is there twice, as {parts[parameter][part].name}"
                    )
                parts[parameter][part] = stored
        if not parts:
            raise BadInput(f"{folder / WEIGHTS}: holds no weights")
        return cls(folder, config, dict(parts))

    @cached_property
    def scales(self) -> dict[str, float]:
        """Of the modules that have low-rank matrices; by these the product of their matrices is multiplied."""
        ranks = {name.rpartition(".")[0]: parts["A"].shape[0] for name, parts in self.parts.items() if "A" in parts}
        rooted = bool(self.config.get("use_rslora"))
        found = alphas(self.config, ranks, str(self.folder / CONFIG)) if ranks else {}
        return {
            module: alpha / (math.sqrt(ranks[module]) if rooted else ranks[module]) for module, alpha in found.items()
        }

    @cached_property
    def digest(self) -> str:
        """Of the weights and of their configuration, which scales them."""
        return f"{sha256_file(self.folder / WEIGHTS)}:{sha256_file(self.folder / CONFIG)}"

    def check(self, layout: Layout) -> None:
        """BadInput unless it can be added to the base."""
        self.check_fit(layout)
        if layout.tied:
            self._check_tied(layout)
        # one that cannot be told is to be found before anything is written
        _ = self.scales

    def check_fit(self, layout: Layout) -> None:
        """BadInput, naming the first, unless each tensor has a weight of the base that it fits."""
        for parameter, parts in self.parts.items():
            first = next(iter(parts.values()))
            if whole := next((stored for stored in parts.values() if not stored.dtype.is_floating_point), None):
                raise BadInput(f"{self.folder}: {plain(whole.name)} holds {whole.dtype}, no weights")
            self._check_parts(parameter)
            base = layout.tensors.get(parameter)
            if base is None:
                # (IA)³ scales a bias where there is one; a tied head is looked at below
                if (parameter.endswith(".bias") and "ia3" in parts) or (parameter == _HEAD and layout.tied):
                    continue
                raise BadInput(
                    f"{self.folder}: {plain(first.name)} is for {plain(parameter)}, no weight of {layout.folder}"
                )
            if not base.dtype.is_floating_point:
                raise BadInput(f"{base.path}: {plain(base.name)} is quantised; give the base as it was before that")
            expected = self._expected(parameter, base.shape, layout.vocabulary)
            for part, stored in parts.items():
                if stored.shape != expected[part]:
                    raise BadInput(
                        f"{self.folder}: {plain(stored.name)} of shape {stored.shape} does not fit {parameter} of "
                        f"shape {base.shape} in {layout.folder}"
                    )

    def _check_parts(self, parameter: str) -> None:
        """BadInput unless the parts belong together."""
        parts, needed = self.parts[parameter], {"A", "B"} | ({"magnitude"} if self.config.get("use_dora") else set())
        given = parts.keys() & _LOW_RANK
        if given and (odd := min(needed ^ given, default="")):
            fault = "lacks" if odd in needed else "should not have"
            raise BadInput(f"{self.folder}: {plain(parameter)} {fault} its LoRA part {odd}")
        if "A" in parts and not (parts["A"].shape and parts["A"].shape[0]):
            raise BadInput(f"{self.folder}: {plain(parts['A'].name)} has no rank")
        if "bias" in parts and "A" not in self.parts.get(f"{parameter.rpartition('.')[0]}.weight", {}):
            raise BadInput(f"{self.folder}: {plain(parts['bias'].name)} stands without LoRA matrices")

    def _check_tied(self, layout: Layout) -> None:
        """BadInput where the head would part from the embeddings that it is.

        In PEFT's forward pass only one of them then has the change; its merge parts them, or gives the change to both.
        """
        embeddings = next((name for name in self.parts if name.endswith(_EMBEDDINGS)), "")
        changed = {n for n in (embeddings, _HEAD) if self.parts.get(n, {}).keys() - {"tokens"}}
        if changed and not (len(changed) == 2 and self._alike(embeddings, _HEAD)):
            raise BadInput(
                f"{self.folder}: changes {plain(' and '.join(sorted(changed)))}, and {layout.folder} has one weight "
                "for head and embeddings; give that base with a head of its own, saved with tie_word_embeddings=False"
            )

    def _alike(self, embeddings: str, head: str) -> bool:
        """Whether the head was trained as one with the embeddings: PEFT's ensure_weight_tying."""
        one, other = self.parts[embeddings], self.parts[head]
        if one.keys() != other.keys() or "magnitude" in one:
            return False
        if "whole" in one and one["whole"].shape != other["whole"].shape:
            return False
        pairs = [(one["whole"].blocks(), other["whole"].blocks())] if "whole" in one else []
        matrices, others = self.lora(embeddings), self.lora(head)
        if matrices and others:
            pairs.append((iter([matrices.a_RC, matrices.b_OR]), iter([others.a_RC, others.b_OR])))
        return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))

    def change(self, base: Stored, parameter: str, lora: bool = True) -> Change:
        """What the adapter does to a parameter that it has parts for; without `lora`, less its low-rank matrices."""
        parts = self.parts[parameter]
        found: list[Change] = []
        if "whole" in parts:
            found.append(Whole(parts["whole"]))
        if lora and (matrices := self.lora(parameter)):
            found.append(matrices.change(parts.get("whole", base)))
        if "bias" in parts:
            found.append(Added(_float(parts["bias"]) * self.scales[parameter.rpartition(".")[0]]))
        if "tokens" in parts:
            ids = torch.tensor(self._token_ids(parameter))
            order = torch.argsort(ids)
            found.append(Rows(ids[order], _float(parts["tokens"])[order]))
        if "ia3" in parts:
            found.append(_scaled(_float(parts["ia3"])))
        return found[0] if len(found) == 1 else Several(found)

    def is_embedding(self, parameter: str) -> bool:
        """Whether it has low-rank matrices for the parameter as an embedding."""
        parts = self.parts.get(parameter, {})
        return "A" in parts and parts["A"].name.endswith("embedding_A")

    def lora(self, parameter: str) -> Lora | None:
        """The low-rank matrices for a parameter, if it has some."""
        parts = self.parts.get(parameter, {})
        if "A" not in parts:
            return None
        a, b = _float(parts["A"]), _float(parts["B"])
        if self.is_embedding(parameter):
            # of an embedding PEFT keeps the transposed matrices
            a, b = b.T.contiguous(), a.T.contiguous()
        magnitude = _float(parts["magnitude"]) if "magnitude" in parts else None
        return Lora(a, b, self.scales[parameter.rpartition(".")[0]], magnitude, self.is_embedding(parameter))

    def _token_ids(self, parameter: str) -> list[int]:
        told = self.config.get("trainable_token_indices")
        if isinstance(told, dict):
            module = parameter.rpartition(".")[0]
            told = next((ids for name, ids in told.items() if f".{module}".endswith(f".{name}")), None)
        if not isinstance(told, list) or not all(type(i) is int and i >= 0 for i in told) or len({*told}) < len(told):
            raise BadInput(f"{self.folder / CONFIG}: trainable_token_indices does not tell the rows of {parameter}")
        return told

    def _expected(self, parameter: str, base: tuple[int, ...], vocabulary: int) -> dict[str, tuple[int, ...]]:
        """The shapes that the parts must have. A whole replacement may have more rows, as a grown vocabulary has."""
        parts = self.parts[parameter]
        rows, columns = base[0] if base else 0, math.prod(base[1:])
        expected: dict[str, tuple[int, ...]] = {"bias": (rows,)}
        if "whole" in parts:
            if len(base) == 2 and rows == vocabulary:
                rows = max(rows, *parts["whole"].shape[:1])
            expected["whole"] = (rows, *base[1:]) if base else ()
        if "A" in parts:
            rank = parts["A"].shape[0] if parts["A"].shape else 0
            turned = self.is_embedding(parameter)
            inputs, outputs = (rows, columns) if turned else (columns, rows)
            expected |= {"A": (rank, inputs), "B": (outputs, rank), "magnitude": (outputs,)}
        if "tokens" in parts:
            ids = self._token_ids(parameter)
            # one that is no row of the weight is a misfit too
            expected["tokens"] = (len(ids), columns) if max(ids, default=0) < rows else ()
        if "ia3" in parts:
            shape = parts["ia3"].shape
            expected["ia3"] = (1, columns) if shape[:1] == (1,) and len(base) > 1 else (rows, 1)
        return expected


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    kind, path = config.get("peft_type"), folder / CONFIG
    if not isinstance(kind, str) or kind not in _OTHERS:
        raise BadInput(f"{path}: {plain(str(kind))} cannot be merged: it is no LoRA adapter, nor (IA)³")
    if foreign := next((name for name in _FOREIGN if config.get(name)), None):
        raise BadInput(f"{path}: {foreign} is set; such an adapter cannot be added to the base's weights")
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_RESIDUAL):
        raise BadInput(
            f"{path}: init_lora_weights is {plain(begun)}: this adapter belongs to a base that it took something off; "
            "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)"
        )


def _places(folder: Path, stored: Stored) -> Iterator[tuple[str, str]]:
    """The parameters that a tensor of an adapter changes, and what for them the tensor is."""
    name = stored.name
    if not name.startswith(_PREFIX):
        raise BadInput(f"{folder / WEIGHTS}: {plain(name)} is no name that PEFT gives")
    name = name.removeprefix(_PREFIX)
    if match := _LORA.fullmatch(name):
        end, part = _PARTS[match["part"]]
        yield f"{match['module']}.{end}", part
    elif match := _TOKENS.fullmatch(name):
        yield f"{match['module']}.weight", "tokens"
    elif match := _IA3.fullmatch(name):
        yield f"{match['module']}.weight", "ia3"
        if stored.shape[1:] == (1,):
            # what scales outputs scales their bias
            yield f"{match['module']}.bias", "ia3"
    else:
        yield name.replace(".base_layer.", "."), "whole"


def _float(stored: Stored) -> torch.Tensor:
    return finite(stored, stored.read().float())


def _scaled(vector: torch.Tensor) -> Scaled:
    return Scaled(by_input_C=vector[0]) if vector.shape[0] == 1 else Scaled(by_output_O=vector[:, 0])


@dataclass(frozen=True)
class Edits:
    """An adapter's changes by the names of the base's files: a `vlm.merge.stream.Source`."""

    layout: Layout
    adapter: Adapter

    def shape(self, stored: Stored) -> tuple[int, ...] | None:
        """A trained replacement's own, else the weight's."""
        parts = self.adapter.parts.get(self.layout.parameter(stored.name))
        if parts is None:
            return None
        return parts["whole"].shape if "whole" in parts else stored.shape

    def change(self, stored: Stored) -> Change:
        return self.adapter.change(stored, self.layout.parameter(stored.name))
