"""Several adapters by weight, combined as PEFT's `add_weighted_adapter` does: a `vlm.merge.stream.Source`.

Low-rank matrices give what PEFT's give, with one difference: a scale of rsLoRA is in each adapter's product, and not a
second time on the sum. One adapter alone is pruned too, as it was asked.
All else that an adapter trains (whole modules, rows of tokens, biases, (IA)³) counts as its difference from the base:
W + Σ weight · (trained - W). PEFT drops it, refuses, or, for (IA)³, agrees where the weights' sum is 1. With `cat` DoRA
counts so too.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from shards.errors import BadInput, plain
from vlm.merge.adapter import Adapter, Lora
from vlm.merge.changes import Blend, Change, LowRank, Several
from vlm.merge.layout import Layout, Stored

EXACT, FACTORS = ("cat", "svd"), ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
KINDS = (*EXACT, *FACTORS, *(f"{kind}_svd" for kind in FACTORS if kind != "linear"))
SIGNS = ("total", "frequency")


@dataclass(frozen=True)
class Combination:
    """How adapters are combined.

    `cat` adds up the products exactly; `svd` too, and keeps the leading `rank` (0: the adapters' largest) singular
    values. The others work on the matrices A and B on their own, with `_svd` on the products and as `svd` after it:
    `linear` adds; `magnitude_prune` keeps the largest `density` of the numbers; `ties` then elects a `sign` for each
    number (https://arxiv.org/abs/2306.01708); `dare` keeps random ones (https://arxiv.org/abs/2311.03099), of `seed`.
    """

    kind: str = "cat"
    density: float | None = None
    sign: Literal["total", "frequency"] = "total"
    rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"--combine {plain(self.kind)}: not one of {', '.join(KINDS)}")
        if self.prunes != (self.density is not None):
            wanted = "missing; give the share to keep, such as 0.5, for" if self.prunes else "is not for"
            raise BadInput(f"--density: {wanted} --combine {self.kind}")
        if self.density is not None and not 0 < self.density <= 1:
            raise BadInput(f"--density {self.density}: a share above 0 and up to 1 is wanted")
        if self.sign not in SIGNS:
            raise BadInput(f"--sign {plain(self.sign)}: not one of {', '.join(SIGNS)}")
        if self.rank < 0 or (self.rank and not self.truncates):
            raise BadInput(f"--rank {self.rank}: a positive number, for svd and the kinds that end in it")

    @property
    def prunes(self) -> bool:
        return self.kind not in (*EXACT, "linear")

    @property
    def truncates(self) -> bool:
        return self.kind.endswith("svd")

    def of(self, tensors: Sequence[torch.Tensor], weights: Sequence[float], name: str) -> torch.Tensor:
        """One of `tensors`, in PEFT's own functions; random numbers are those of `name`."""
        kind, by = self.kind.removesuffix("_svd"), torch.tensor(weights)
        if kind == "linear":
            return torch.stack([tensor * weight for tensor, weight in zip(tensors, by, strict=True)]).sum(0)
        # with its package come transformers and some 300 MB
        from peft.utils import merge_utils

        assert self.density is not None
        each = list(tensors)
        with _random(f"{self.seed}:{name}"), warnings.catch_warnings():
            # a density of 1 is no mistake here
            warnings.simplefilter("ignore")
            if kind == "ties":
                return merge_utils.ties(each, by, self.density, self.sign)
            if kind == "dare_ties":
                return merge_utils.dare_ties(each, by, self.density, self.sign)
            plain_sum = {"dare_linear": merge_utils.dare_linear, "magnitude_prune": merge_utils.magnitude_prune}
            return plain_sum[kind](each, by, self.density)


@contextmanager
def _random(name: str) -> Iterator[None]:
    """Random numbers that depend on `name` alone: a merge that goes on draws the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True))
        yield


@dataclass(frozen=True)
class Combined:
    """The adapters' changes by the names of the base's files, one weight's matrices in memory at a time."""

    layout: Layout
    adapters: Sequence[Adapter]
    weights: Sequence[float]
    how: Combination

    def check(self) -> None:
        """BadInput unless all adapters fit the base and each other."""
        if len(self.weights) != len(self.adapters):
            raise BadInput(f"{len(self.weights)} weights for {len(self.adapters)} adapters; give each its own")
        if not all(math.isfinite(weight) for weight in self.weights):
            raise BadInput(f"weights {plain(str(list(self.weights)))}: numbers are wanted")
        if len(kinds := {adapter.config["peft_type"] for adapter in self.adapters}) > 1:
            raise BadInput("LoRA adapters and (IA)³ adapters cannot be combined with each other")
        if kinds == {"IA3"} and self.how.kind not in ("cat", "linear"):
            raise BadInput(f"(IA)³ adapters are combined with --combine cat or linear, not {self.how.kind}")
        for adapter in self.adapters:
            adapter.check(self.layout)
        for parameter in dict.fromkeys(name for adapter in self.adapters for name in adapter.parts):
            if parameter in self.layout.tensors:
                self._check(parameter)

    def _check(self, parameter: str) -> None:
        held = [adapter.parts[parameter] for adapter in self.adapters if parameter in adapter.parts]
        if self.how.kind != "cat" and any("magnitude" in parts for parts in held):
            raise BadInput(f"{parameter}: DoRA adapters are combined with --combine cat alone, not {self.how.kind}")
        ranks = {parts["A"].shape[0] for parts in held if "A" in parts}
        if self.how.kind in FACTORS and len(ranks) > 1:
            raise BadInput(
                f"{parameter}: of ranks {sorted(ranks)}; --combine {self.how.kind} wants one, take cat or svd"
            )
        sizes = [math.prod(parts[part].shape) for parts in held for part in ("A", "B") if part in parts]
        if sizes and self.how.truncates:
            sizes = [math.prod(self.layout.tensors[parameter].shape)]
        if self.how.density is not None and sizes and int(self.how.density * min(sizes)) < 1:
            raise BadInput(f"--density {self.how.density}: keeps none of the {min(sizes)} numbers for {parameter}")
        grown = {parts["whole"].shape for parts in held if "whole" in parts} - {self.layout.tensors[parameter].shape}
        if grown and (len(grown) > 1 or len(held) < len(self.adapters) or abs(sum(self.weights) - 1) > 1e-6):
            raise BadInput(f"{parameter}: has new rows; all adapters must have the same, and their weights' sum be 1")

    def shape(self, stored: Stored) -> tuple[int, ...] | None:
        parameter = self.layout.parameter(stored.name)
        held = [adapter.parts[parameter] for adapter in self.adapters if parameter in adapter.parts]
        return max((parts["whole"].shape for parts in held if "whole" in parts), default=stored.shape) if held else None

    def change(self, stored: Stored) -> Change:
        parameter = self.layout.parameter(stored.name)
        held = [(a, w) for a, w in zip(self.adapters, self.weights, strict=True) if parameter in a.parts]
        dora = any("magnitude" in adapter.parts[parameter] for adapter, _ in held)
        beside = [(a, w) for a, w in held if dora or a.parts[parameter].keys() - {"A", "B"}]
        found: list[Change] = []
        if beside:
            changes = [adapter.change(stored, parameter, lora=dora) for adapter, _ in beside]
            found.append(Blend([weight for _, weight in beside], changes))
        matrices = [(lora, weight) for adapter, weight in held if not dora and (lora := adapter.lora(parameter))]
        if matrices:
            found.append(self._low_rank(parameter, matrices))
        return found[0] if len(found) == 1 else Several(found)

    def _low_rank(self, parameter: str, matrices: Sequence[tuple[Lora, float]]) -> LowRank:
        kind = self.how.kind
        if kind in FACTORS:
            return self._factors(parameter, matrices)
        if kind in EXACT:
            a_RC = torch.cat([lora.a_RC * (weight * lora.scale) for lora, weight in matrices])
            b_OR = torch.cat([lora.b_OR for lora, _ in matrices], dim=1)
            return LowRank(a_RC, b_OR, 1.0) if kind == "cat" else _leading(a_RC, b_OR, self._rank)
        products = [lora.b_OR @ lora.a_RC * lora.scale for lora, _ in matrices]
        return _leading_of(self.how.of(products, [weight for _, weight in matrices], parameter), self._rank)

    def _factors(self, parameter: str, matrices: Sequence[tuple[Lora, float]]) -> LowRank:
        scales = [weight * lora.scale for lora, weight in matrices]
        roots = [math.sqrt(abs(scale)) for scale in scales]
        signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
        # PEFT gives the sign to what it calls A, which of an embedding is the other one
        turned = matrices[0][0].is_embedding
        a_RC = self.how.of([lora.a_RC for lora, _ in matrices], roots if turned else signed, f"{parameter}:A")
        b_OR = self.how.of([lora.b_OR for lora, _ in matrices], signed if turned else roots, f"{parameter}:B")
        return LowRank(a_RC, b_OR, 1.0)

    @cached_property
    def _rank(self) -> int:
        ranks = [parts["A"].shape[0] for a in self.adapters for parts in a.parts.values() if "A" in parts]
        return self.how.rank or max(ranks)


def _leading(a_RC: torch.Tensor, b_OR: torch.Tensor, rank: int) -> LowRank:
    """The leading singular vectors of B A, from those of a small matrix: both are brought to orthogonal bases first."""
    left, b_RR = torch.linalg.qr(b_OR.double())
    right, a_RR = torch.linalg.qr(a_RC.double().T)
    u, s, v = torch.linalg.svd(b_RR @ a_RR.T)
    return LowRank((v[:rank] @ right.T).float(), (left @ (u[:, :rank] * s[:rank])).float(), 1.0)


def _leading_of(product_OC: torch.Tensor, rank: int) -> LowRank:
    """The same of a product, from the eigenvectors of its smaller Gram matrix: a full decomposition takes minutes."""
    turned = product_OC.shape[0] > product_OC.shape[1]
    wide = product_OC.T if turned else product_OC
    gram = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64)
    for part in wide.split(1024, dim=1):
        gram.addmm_(part.double(), part.double().T)
    vectors = torch.linalg.eigh(gram)[1][:, -rank:].float()
    projected = vectors.T @ wide
    return LowRank(vectors.T, projected.T, 1.0) if turned else LowRank(projected, vectors, 1.0)
