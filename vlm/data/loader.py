"""From the plan to micro-batches on the device: members read by offset, decoded ahead of the step."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm.data.batch import MicroBatch, filler, pack
from vlm.data.documents import Document, Tokeniser
from vlm.data.images import Pixels, flip_shift
from vlm.data.plan import Plan, deal


@dataclass(kw_only=True)
class DataConfig:
    """Section `data` of a recipe."""

    train: str = ""
    """Folder of the training shards."""
    template: str = ""
    """Chat template by name or YAML file; empty takes the model folder's."""
    turns: str = "joint"
    """joint: a dialogue is one text. separate: questions share the image and do not see each other."""
    batch_size: int = 128
    """Samples in an optimizer step, over all ranks."""
    micro_batch_tokens: int = 8192
    """Most tokens of a flat row."""
    max_length: int = 4096
    """Samples are cut to so many tokens."""
    window: int = 0
    """Shards whose samples are shuffled together; 0 for all."""
    shift: int = 0
    """Augmentation: mirror images and shift them by up to so many pixels; 0 leaves them as they are."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.micro_batch_tokens, self.max_length) < 1:
            raise BadInput("data.batch_size, data.micro_batch_tokens and data.max_length must be at least 1")
        if min(self.window, self.shift) < 0:
            raise BadInput("data.window and data.shift must be at least 0")


@dataclass(frozen=True)
class Step:
    """One rank's share of an optimizer step. `supervised` counts the labels of the *global* batch."""

    index: int
    micro_batches: list[MicroBatch]
    samples: list[tuple[int, str]]
    tokens: int
    supervised: int


class Source:
    """The training set as documents: tokenised once, pixels decoded on demand."""

    def __init__(self, config: DataConfig, tokeniser: Tokeniser, pixels: Pixels, seed: int) -> None:
        self.dataset = ShardDataset.open(Path(config.train))
        self.config, self.pixels, self.seed = config, pixels, seed
        self.documents = [self._checked(tokeniser.document(sample)) for sample in self.dataset]

    def _checked(self, document: Document) -> Document:
        if not document.supervised:
            raise BadInput(
                f"{self.config.train}: sample {document.key} has no supervised token with data.template="
                f"{self.config.template or '(the model folder)'} and data.max_length={self.config.max_length}; "
                "the loss would be 0: mend the template or raise data.max_length"
            )
        return document

    def images(self, epoch: int, index: int) -> list[np.ndarray]:
        """uint8 (3, H, W) pixels of a sample, augmented as (seed, epoch, index) say."""
        image = self.dataset.read(index).image
        if image is None:
            return []
        pixels = self.pixels.decode(image)
        if self.config.shift:
            pixels = flip_shift(pixels, np.random.default_rng([self.seed, epoch, index]), self.config.shift)
        return [pixels]


class Loader:
    """Yields this rank's `Step`s from `start` on; two steps are prepared ahead in a thread."""

    def __init__(self, source: Source, plan: Plan, rank: int, ranks: int, window: int | None) -> None:
        self.source, self.plan, self.rank, self.ranks, self.window = source, plan, rank, ranks, window

    def steps(self, start: int, end: int, workers: int = 2, ahead: int = 2) -> Iterator[Step]:
        """Steps `[start, end)` in order. An error in the preparing thread is raised here."""
        ready: queue.Queue[Step | BaseException] = queue.Queue(ahead)
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop, start, end, workers), daemon=True)
        thread.start()
        try:
            for _ in range(start, end):
                step = ready.get()
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            stop.set()
            while not ready.empty():
                ready.get_nowait()
            thread.join()

    def _fill(
        self, ready: "queue.Queue[Step | BaseException]", stop: threading.Event, start: int, end: int, workers: int
    ) -> None:
        with ThreadPoolExecutor(workers) as pool:
            for index in range(start, end):
                try:
                    item: Step | BaseException = self.step(index, pool)
                except BaseException as error:
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if stop.is_set() or isinstance(item, BaseException):
                    return

    def step(self, index: int, pool: ThreadPoolExecutor) -> Step:
        """This rank's share of step `index`, made from nothing but the plan."""
        batch = self.plan.batch(index)
        documents = [self.source.documents[i] for _, i in batch]
        dealt = deal([len(d) for d in documents], self.ranks, self.source.config.micro_batch_tokens)
        shortest = min(range(len(batch)), key=lambda i: len(documents[i]))
        rows = []
        for places in dealt[self.rank]:
            row = [documents[i] for i in places] or [filler(documents[shortest])]
            images = pool.map(lambda i: self.source.images(*batch[i]), places or [shortest])
            flat = [pixels for of_sample in images for pixels in of_sample]
            rows.append(pack(row, flat, self.source.pixels.size, self.window))
        return Step(
            index=index,
            micro_batches=rows,
            samples=[(epoch, self.source.documents[i].key) for epoch, i in batch],
            tokens=sum(len(d) for d in documents),
            supervised=sum(d.supervised for d in documents),
        )
