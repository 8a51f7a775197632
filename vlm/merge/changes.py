"""What a merge does to one weight, a block of its rows at a time, in float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shards.errors import BadInput, plain
from vlm.merge.layout import Stored

# a product of 1 to 3 rows runs in other kernels and may end in other bits; what is written must not tell the blocks
_FEW = 8


def finite(stored: Stored, values: torch.Tensor) -> torch.Tensor:
    """`values`, part or all of `stored`; BadInput where a number is none."""
    if not torch.isfinite(values).all():
        raise BadInput(f"{stored.path}: {plain(stored.name)} holds a value that is not finite")
    return values


class Change(Protocol):
    """A change of a weight."""

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        """Change the rows from `first` on, float32, in place; of a vector the rows are its numbers."""
        ...


@dataclass(frozen=True)
class LowRank:
    """W + Σ scale · B A, LoRA (https://arxiv.org/abs/2106.09685) and what is added up of several.

    `a_RC` and `b_OR` are float32. With `magnitude_O` the sum's rows are brought to these lengths: DoRA
    (https://arxiv.org/abs/2402.09353).
    """

    a_RC: torch.Tensor
    b_OR: torch.Tensor
    scale: float
    magnitude_O: torch.Tensor | None = None

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        last = first + rows_rC.shape[0]
        if rows_rC.shape[0] < _FEW:
            padded = torch.nn.functional.pad(rows_rC, (0, 0, 0, _FEW - rows_rC.shape[0]))
            b_OR = torch.nn.functional.pad(self.b_OR[first:last], (0, 0, 0, _FEW - rows_rC.shape[0]))
            rows_rC.copy_(padded.addmm_(b_OR, self.a_RC, alpha=self.scale)[: rows_rC.shape[0]])
        else:
            rows_rC.addmm_(self.b_OR[first:last], self.a_RC, alpha=self.scale)
        if self.magnitude_O is not None:
            rows_rC.mul_((self.magnitude_O[first:last] / torch.linalg.norm(rows_rC, dim=1)).unsqueeze(1))


@dataclass(frozen=True)
class Added:
    """A vector added to a bias."""

    values_O: torch.Tensor

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        rows_rC += self.values_O[first : first + rows_rC.shape[0]]


@dataclass(frozen=True)
class Scaled:
    """(IA)³ (https://arxiv.org/abs/2205.05638): outputs, or inputs, times a learned vector."""

    by_output_O: torch.Tensor | None = None
    by_input_C: torch.Tensor | None = None

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        if self.by_input_C is not None:
            rows_rC *= self.by_input_C
        if self.by_output_O is not None:
            own = self.by_output_O[first : first + rows_rC.shape[0]]
            rows_rC *= own if rows_rC.ndim == 1 else own.unsqueeze(1)


@dataclass(frozen=True)
class Rows:
    """Some rows, those of trained tokens, replaced; `ids` rise."""

    ids: torch.Tensor
    values_NC: torch.Tensor

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        begin, end = torch.searchsorted(self.ids, torch.tensor([first, first + rows_rC.shape[0]])).tolist()
        rows_rC[self.ids[begin:end] - first] = self.values_NC[begin:end]


@dataclass(frozen=True)
class Whole:
    """The weight replaced by a trained one, which may have more rows: a grown vocabulary.

    It stays on the disk: an embedding of 128,000 tokens takes 2 GB in float32.
    """

    values: Stored

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        rows_rC.copy_(finite(self.values, self.values.read(first, rows_rC.shape[0])))


@dataclass(frozen=True)
class Several:
    """One change after the other: trained rows of an embedding that is adapted besides."""

    each: Sequence[Change]

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        for change in self.each:
            change.apply(rows_rC, first)


@dataclass(frozen=True)
class Blend:
    """W + Σ weight · (change(W) - W): the exact sum of what several changes do, each to the base's weight."""

    weights: Sequence[float]
    changes: Sequence[Change]

    def apply(self, rows_rC: torch.Tensor, first: int) -> None:
        base_rC = rows_rC.clone()
        for weight, change in zip(self.weights, self.changes, strict=True):
            changed_rC = base_rC.clone()
            change.apply(changed_rC, first)
            rows_rC.add_(changed_rC.sub_(base_rC), alpha=weight)
