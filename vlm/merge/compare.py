"""A merged folder from elsewhere against what a merge would write, row by row: no probe draws every token."""

from collections.abc import Callable

import torch
from torch import Tensor

from shards.errors import plain
from vlm.merge.changes import finite
from vlm.merge.layout import Layout, Stored
from vlm.merge.proof import Differs
from vlm.merge.streamed import Weights

# of a row's length: four times what rounding it takes off, as others round the change and the sum
ROW_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-7}
_BLOCK_NUMBERS = 4 << 20


def compare_tensors(expected: Weights, merged: Layout, progress: Callable[[int], None] = lambda read: None) -> None:
    """Differs, naming file, tensor and row, unless the weights of `expected` that are used stand in `merged`."""
    with torch.inference_mode(), expected, Weights(merged, None, progress) as found:
        for parameter, stored in expected.used.items():
            # a head may be stored on one side alone, and be the embeddings on the other: the logits tell
            if other := found.find(parameter):
                _compare(expected, stored, found, other)


def _compare(expected: Weights, stored: Stored, found: Weights, other: Stored) -> None:
    name = f"{other.path}: {plain(other.name)}"
    if other.shape != expected.shape(stored) or other.dtype not in ROW_TOLERANCE:
        raise Differs(f"{name} holds {other.dtype} of shape {other.shape}; it should be {expected.shape(stored)}")
    changes, step = expected.changes(stored), max(1, _BLOCK_NUMBERS * other.dtype.itemsize // max(1, other.row_bytes))
    for first in range(0, other.rows, step):
        last = min(first + step, other.rows)
        base_nC, found_nC = (_matrix(w.rows(s, first, last)) for w, s in ((expected, stored), (found, other)))
        finite(stored, base_nC)
        finite(other, found_nC)
        wanted_nC = base_nC.clone()
        for change in changes:
            change.apply(wanted_nC if len(other.shape) > 1 else wanted_nC.view(-1), first)
        lengths_n = torch.linalg.norm(wanted_nC, dim=1)
        limit_n = ROW_TOLERANCE[other.dtype] * torch.maximum(lengths_n, lengths_n.mean())
        away_n = torch.linalg.norm(found_nC - wanted_nC, dim=1)
        if (away_n > limit_n).any():
            row = int((away_n / limit_n).argmax())
            is_base = bool(torch.linalg.norm(found_nC[row] - base_nC[row]) <= limit_n[row])
            hint = ", and is the base's own: that adapter is not in it" if is_base and changes else ""
            raise Differs(
                f"{name}: row {first + row} is off by {away_n[row] / lengths_n[row]:.2g} times its length{hint}"
            )


def _matrix(rows: Tensor) -> Tensor:
    """A vector as one row."""
    return rows.view(1, -1) if rows.ndim < 2 else rows.view(rows.shape[0], -1)
