"""One micro-batch: documents end to end in a flat row, nothing padded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlm.data.documents import Document
from vlm.model.attention import Layout, Segment


@dataclass
class MicroBatch:
    """`input_ids`, `labels`, `position_ids` int64 (T,); `pixels` uint8 (images, 3, H, W), images in row order."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    pixels: Tensor
    layout: Layout
    keys: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch on another device; pinned source memory makes the copy asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "MicroBatch":
        """The same micro-batch in page-locked memory of the current CUDA device's host."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> "MicroBatch":
        names = ("input_ids", "labels", "position_ids", "pixels")
        ids, labels, positions, pixels = (move(getattr(self, name)) for name in names)
        return replace(self, input_ids=ids, labels=labels, position_ids=positions, pixels=pixels)


def pack(documents: Sequence[Document], pixels: Sequence[np.ndarray], image_size: int) -> MicroBatch:
    """Lay documents end to end. `pixels` holds uint8 (3, H, W) images in document order; there may be none."""
    segments: list[Segment] = []
    bounds: list[tuple[int, int]] = []
    at = 0
    for document in documents:
        start = at
        at += document.prefix
        if document.prefix:
            segments.append(Segment(start, at))
        for length in document.segments:
            segments.append(Segment(at, at + length, start, start + document.prefix))
            at += length
        bounds.append((start, at))
    images = np.stack(pixels) if len(pixels) else np.zeros((0, 3, image_size, image_size), dtype=np.uint8)
    return MicroBatch(
        input_ids=_row([d.input_ids for d in documents]),
        labels=_row([d.labels for d in documents]),
        position_ids=_row([d.position_ids for d in documents]),
        pixels=torch.from_numpy(images),
        layout=Layout(segments, bounds),
        keys=tuple(d.key for d in documents),
    )


def _row(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))
