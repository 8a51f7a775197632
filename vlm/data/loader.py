"""From the plan to micro-batches on the device: members read by offset, tokenised and decoded ahead of the step."""

import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from shards.ahead import cores
from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm.data.batch import MicroBatch, pack
from vlm.data.cost import Cost
from vlm.data.deal import deal
from vlm.data.documents import Document, Tokeniser, silent
from vlm.data.images import Pixels, flip_shift
from vlm.data.lengths import Lengths, cache_folder, check_lengths, lengths_of
from vlm.data.mixture import Corpus, SetConfig
from vlm.data.plan import Plan
from vlm.data.step import Skipped, Step
from vlm.data.waits import Waits


@dataclass(kw_only=True)
class DataConfig:
    """Section `data` of a recipe."""

    train: str = ""
    """Folder of the training shards."""
    mix: list[SetConfig] = field(default_factory=list)
    """Several folders instead: {path, epochs, weight} each."""
    template: str = ""
    """Chat template by name or YAML file; empty takes the model folder's."""
    turns: str = "joint"
    """joint: a dialogue is one text. separate: questions share the image and do not see each other."""
    batch_size: int = 128
    """Samples in an optimizer step, over all ranks."""
    micro_batch_tokens: int = 8192
    """Most tokens of a flat row, those that prompt, p-tuning and prefix put before every document included."""
    max_length: int = 4096
    """Samples are cut to so many tokens."""
    window: int = 0
    """Shards whose samples are shuffled together; 0 for all."""
    shift: int = 0
    """Augmentation: mirror images and shift them by up to so many pixels; 0 leaves them as they are."""
    max_skipped: float = 0.001
    """Share of the run's samples that may be left out because they cannot be read; 0 stops at the first."""
    workers: int = 0
    """Threads of each rank that read and decode; 0 for one a core, at most 4."""
    ahead: int = 2
    """Steps prepared ahead."""
    cache: str = ""
    """Folder that keeps the lengths of samples; empty for ruvlm/lengths in the user's cache."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.micro_batch_tokens, self.max_length, self.ahead) < 1:
            raise BadInput(
                "data.batch_size, data.micro_batch_tokens, data.max_length and data.ahead must be at least 1"
            )
        if min(self.window, self.shift, self.workers) < 0:
            raise BadInput("data.window, data.shift and data.workers must be at least 0")
        if not 0 <= self.max_skipped <= 1:
            raise BadInput(f"data.max_skipped: {self.max_skipped} must be between 0 and 1")

    @property
    def threads(self) -> int:
        """`workers`, chosen where it is 0."""
        return self.workers or min(4, cores())


class Source:
    """The training samples: their lengths known from the start, text and pixels made on demand."""

    def __init__(self, config: DataConfig, tokeniser: Tokeniser, pixels: Pixels, seed: int) -> None:
        """BadInput where the set or a sample of it cannot train; `warnings` are lines about what looks wrong."""
        self.config, self.tokeniser, self.pixels, self.seed = config, tokeniser, pixels, seed
        if config.shift and pixels.tiles:
            raise BadInput(f"data.shift={config.shift}: each tile would be mirrored by itself; set it to 0")
        self.dataset = Corpus.open(config.train, config.mix)
        self.warnings: list[str] = []
        parts = []
        for each in self.dataset.sets:
            part = lengths_of(each, tokeniser, pixels, cache_folder(config.cache))
            self._refuse_silent(part, each)
            self.warnings += check_lengths(part, tokeniser.image_tokens, tokeniser.max_length, each.folder.as_posix())
            parts.append(part)
        self.lengths = Lengths.join(parts)

    def __len__(self) -> int:
        return len(self.dataset)

    def _refuse_silent(self, lengths: Lengths, dataset: ShardDataset) -> None:
        without = np.flatnonzero(lengths.supervised == 0)
        if len(without):
            more = f" ({len(without) - 1} more like it)" if len(without) > 1 else ""
            raise BadInput(
                f"{dataset.folder}: sample {dataset.entries.key(int(without[0]))} has no supervised token with "
                f"data.template={self.config.template or '(the model folder)'} and "
                f"data.max_length={self.config.max_length}; "
                f"the loss would be 0{more}: mend the template or raise data.max_length"
            )

    def document(self, index: int) -> Document:
        """The tokenised sample; BadInput when it cannot be read."""
        return self.load(0, index)[0]

    def load(self, epoch: int, index: int) -> tuple[Document, list[np.ndarray]]:
        """Document and pixels, uint8 (3, H, W) each, augmented as (seed, epoch, index) say; BadInput when damaged."""
        sample = self.dataset.read(index)
        pixels = [] if sample.image is None else list(self.pixels.views(sample.image))
        document = self.tokeniser.document(sample, max(1, len(pixels)))
        if len(document) != self.lengths.tokens[index] or document.supervised != self.lengths.supervised[index]:
            raise RuntimeError(f"{document.key}: {len(document)} tokens, planned were {self.lengths.tokens[index]}")
        if self.config.shift:
            rng = np.random.default_rng([self.seed, epoch, index])
            pixels = [flip_shift(image, rng, self.config.shift) for image in pixels]
        return document, pixels

    def load_or_skip(self, epoch: int, index: int) -> tuple[Document, list[np.ndarray], Skipped | None]:
        """As `load`; a sample that cannot be read is a silent token, no pixels, and the reason."""
        try:
            return *self.load(epoch, index), None
        except BadInput as error:
            key = self.dataset.key(index)
            tokens, supervised = int(self.lengths.tokens[index]), int(self.lengths.supervised[index])
            return silent(key), [], Skipped((epoch, key), f"{key}: {error}", tokens, supervised, error.kind)


class Loader:
    """Yields this rank's `Step`s from `start` on, prepared ahead by threads, in pinned memory for a CUDA device."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        rank: int,
        ranks: int,
        cost: Cost | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.source, self.plan, self.rank, self.ranks = source, plan, rank, ranks
        self.cost, self.device = cost or Cost(), device

    def steps(self, start: int, end: int) -> Iterator[Step]:
        """Steps `[start, end)` in order. An error in the preparing thread is raised here.

        Says once on stderr when the caller waits for more than a hundredth of its time.
        """
        ready: queue.Queue[Step | BaseException] = queue.Queue(self.source.config.ahead)
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop, start, end), daemon=True)
        thread.start()
        waits = Waits()
        try:
            for _ in range(start, end):
                step = waits.during(ready.get)
                if isinstance(step, BaseException):
                    raise step
                if waits.slow():
                    print(self._slow_line(waits.share), file=sys.stderr, flush=True)
                yield step
        finally:
            stop.set()
            while not ready.empty():
                ready.get_nowait()
            thread.join()

    def _fill(self, ready: "queue.Queue[Step | BaseException]", stop: threading.Event, start: int, end: int) -> None:
        if self.device is not None and self.device.type == "cuda":
            # a new thread starts on the first GPU, where pinning memory would open a context of every rank
            torch.cuda.set_device(self.device)
        with ThreadPoolExecutor(self.source.config.threads) as pool:
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
        """This rank's share of step `index`, made from nothing but the plan and the lengths."""
        batch, lengths = self.plan.batch(index), self.source.lengths
        indices = [i for _, i in batch]
        tokens = lengths.tokens[indices]
        # as long as the row will be: the model puts its virtual tokens in after the loader
        in_row = tokens + self.source.tokeniser.virtual_tokens
        costs = self.cost.of(in_row, lengths.images[indices])
        limit = self.source.config.micro_batch_tokens
        rows = deal(in_row.tolist(), self.ranks, limit, costs.tolist())[self.rank]
        own = [place for row in rows for place in row]
        loaded = dict(zip(own, pool.map(lambda place: self.source.load_or_skip(*batch[place]), own), strict=True))
        return Step(
            index=index,
            micro_batches=[self._pack([loaded[place] for place in row]) for row in rows],
            samples=[(epoch, self.source.dataset.key(i)) for epoch, i in batch],
            tokens=int(tokens.sum()),
            supervised=int(lengths.supervised[indices].sum()),
            skipped=tuple(skipped for _, _, skipped in loaded.values() if skipped),
        )

    def _pack(self, row: list[tuple[Document, list[np.ndarray], Skipped | None]]) -> MicroBatch:
        documents = [document for document, _, _ in row] or [silent("")]
        pixels = [image for _, images, _ in row for image in images]
        packed = pack(documents, pixels, self.source.pixels.size)
        return packed.pin() if self.device is not None and self.device.type == "cuda" else packed

    def _slow_line(self, share: float) -> str:
        config = self.source.config
        return (
            f"data: rank {self.rank} waits for {100 * share:.1f} % of its time; give it more cores (it has {cores()}), "
            f"raise data.workers (now {config.threads}) or data.ahead (now {config.ahead}), or use a faster disk"
        )
