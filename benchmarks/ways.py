"""Ways to take the same optimizer step: ours in a bare loop, and through DeepSpeed as `vlm train` does."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig

from benchmarks.train import PIXELS, SAMPLES, Shape, build_model, documents, with_lora
from vlm.data.batch import MicroBatch, pack
from vlm.data.documents import IGNORE
from vlm.engine import Engine, EngineConfig, all_reduce_sums, deepspeed_config, start_world
from vlm.model.adapters.quantised import quantise
from vlm.model.attention import PACKED, choose_backend
from vlm.model.blocks import prepare_blocks
from vlm.model.packed import PackedLlava
from vlm.optim import OptimConfig, make_optimizer

OPTIM = OptimConfig(lr=1e-4, schedule="constant", warmup=0.0)
WARM_UP = 1
"""Rounds that are not counted."""


@dataclass(frozen=True)
class Setting:
    """A model, and the lengths of the samples of each optimizer step."""

    shape: Shape
    vision: CLIPVisionConfig
    batches: tuple[tuple[int, ...], ...]
    micro: int = SAMPLES
    """Samples of a micro-batch."""
    r: int = 16
    checkpoint: int = 0
    """Activations: 0 kept, 1 recomputed in every block."""
    quantised: bool = False
    """Frozen linear layers of the language model in 4 bits."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rounds: int = 5

    @property
    def image_tokens(self) -> int:
        return (self.vision.image_size // self.vision.patch_size) ** 2

    @property
    def efficiency(self) -> float:
        """Tokens over those of the padded micro-batches."""
        rows = [b[i : i + self.micro] for b in self.batches for i in range(0, len(b), self.micro)]
        return sum(map(sum, rows)) / sum(len(row) * max(row) for row in rows)

    @cached_property
    def samples(self) -> tuple[list[Any], list[np.ndarray]]:
        """Documents and images of all batches, in order."""
        lengths = [n for batch in self.batches for n in batch]
        return documents(lengths, self.shape.vocabulary, self.image_tokens, self.vision.image_size)

    def spans(self, number: int) -> list[slice]:
        """Where the micro-batches of step `number` lie in `samples`."""
        start = sum(len(batch) for batch in self.batches[:number])
        return [slice(start + i, start + i + self.micro) for i in range(0, len(self.batches[number]), self.micro)]

    def micro_batches(self, number: int) -> list[MicroBatch]:
        """Step `number`'s flat rows."""
        made, images = self.samples
        rows = [pack(made[s], images[s], self.vision.image_size) for s in self.spans(number)]
        return [row.to(torch.device(self.device)) for row in rows]

    def model(self) -> nn.Module:
        """The LLaVA with a LoRA adapter, the same for the same setting."""
        with torch.device(self.device):
            llava = build_model(self.shape, PACKED, self.dtype, self.vision)
            prepare_blocks(llava, self.checkpoint)
            model = with_lora(quantise(llava) if self.quantised else llava, self.r).train()
        for parameter in model.parameters():
            if parameter.requires_grad:
                # as `vlm train` has it: PEFT alone would keep the adapter in float32
                parameter.data = parameter.data.to(self.dtype)
        return model


@dataclass(frozen=True)
class Step:
    """Seconds (CPU time, or wall time on a GPU), the loss per supervised token, and peak memory of a GPU."""

    seconds: float
    loss: float
    peak: int = 0


class Way(Protocol):
    """Something that trains."""

    def step(self, number: int) -> Step:
        """One optimizer step on batch `number`."""

    def close(self) -> None:
        """Give back what it holds."""


class Plain:
    """Our step in a bare loop with torch's AdamW."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        choose_backend("auto", torch.device(setting.device), setting.dtype)
        self.model = PackedLlava(setting.model(), PIXELS)
        self.start()

    def start(self) -> None:
        """Make what updates the weights."""
        self.optimizer = make_optimizer(self.model, OPTIM)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def step(self, number: int) -> Step:
        """Pack, forward, backward, update."""
        clock = Clock(self.setting.device)
        rows = self.setting.micro_batches(number)
        loss = self.learn(rows, sum(int((row.labels != IGNORE).sum()) for row in rows))
        return clock.stop(loss)

    def learn(self, rows: Sequence[MicroBatch], supervised: int) -> float:
        """The step's loss."""
        total = 0.0
        for row in rows:
            loss = self.model(row) / supervised
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.trained, OPTIM.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def close(self) -> None:
        """Free the device's memory."""
        vars(self).clear()
        free()


class Engined(Plain):
    """Our step as `vlm train` does it: DeepSpeed ZeRO-2 on one rank."""

    def start(self) -> None:
        """Hand the model to DeepSpeed."""
        world = start_world(EngineConfig())
        config = deepspeed_config(EngineConfig(), OPTIM, str(self.setting.dtype).removeprefix("torch."), world.size)
        self.engine = Engine(self.model, config, OPTIM)

    def learn(self, rows: Sequence[MicroBatch], supervised: int) -> float:
        """The step's loss."""
        total = 0.0
        for i, row in enumerate(rows):
            loss = self.engine.ds(row)
            # the loop's own exchange: the loss, and whether to stop
            total += all_reduce_sums([float(loss.detach()), 0.0])[0]
            self.engine.backward(loss, supervised, last=i + 1 == len(rows))
        self.engine.step()
        return total / supervised

    def close(self) -> None:
        """Free the device's memory."""
        # its hooks would hold the weights
        self.engine.ds.destroy()
        super().close()


class Clock:
    """CPU time of this process, or wall time where a GPU works."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.began = self._now()

    def stop(self, loss: float) -> Step:
        """What was measured."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return Step(self._now() - self.began, loss, peak)

    def _now(self) -> float:
        return time.perf_counter() if self.device == "cuda" else time.process_time()


def free() -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


Taken = dict[str, list[list[Step]]]
"""By way and round, the steps of all batches."""


def take_turns(setting: Setting, makers: dict[str, Callable[[], Way]]) -> Taken:
    """Every round runs each way once on all batches, step by step in turn; a way that cannot start raises."""
    with ExitStack() as held:
        ways: dict[str, Way] = {}
        for name, make in makers.items():
            ways[name] = make()
            held.callback(ways[name].close)
        taken: Taken = {name: [] for name in ways}
        for _ in range(setting.rounds + WARM_UP):
            for steps in taken.values():
                steps.append([])
            for number in range(len(setting.batches)):
                for name, way in ways.items():
                    taken[name][-1].append(way.step(number))
    return gate(taken, setting)


def gate(taken: Taken, setting: Setting, warm_up: int = WARM_UP) -> Taken:
    """The counted rounds; RuntimeError where ways differ in the loss of any step."""
    tolerance = 1e-4 if setting.dtype == torch.float32 else 0.02
    for steps in zip(*([s for r in rounds for s in r] for rounds in taken.values()), strict=True):
        losses = [step.loss for step in steps]
        if not all(abs(loss - losses[0]) <= tolerance * losses[0] for loss in losses):
            raise RuntimeError(f"the ways do not agree: {dict(zip(taken, losses, strict=True))}")
    return {name: rounds[warm_up:] for name, rounds in taken.items()}


def seconds(rounds: list[list[Step]]) -> list[float]:
    """Of each round."""
    return [sum(step.seconds for step in steps) for steps in rounds]
