"""Train a recipe: the whole run as named steps."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import write_json
from vlm import checkpoint
from vlm.checkpoint import State
from vlm.config import Recipe
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.loader import Loader, Source, Step
from vlm.data.plan import Plan
from vlm.data.template import load_template
from vlm.engine import Engine, all_reduce_sum, deepspeed_config, start_world
from vlm.events import Events, Heartbeat, read_events
from vlm.model.adapter import trainable
from vlm.model.alignment import parallel_texts, start_at_translations
from vlm.model.assemble import Assembly, weights_digest
from vlm.model.attention import choose_backend
from vlm.model.load import DTYPES, load_model, load_tokenizer, model_folder, sliding_window
from vlm.model.packed import PackedLlava
from vlm.optim import set_learning_rate
from vlm.stop import Requeue, StopRequest
from vlm.world import World

VERSIONS = ("torch", "deepspeed", "transformers", "peft", "webdataset", "submitit", "omegaconf")


def train(recipe: Recipe) -> Path:
    """Train to the end, resuming from the newest verified checkpoint; returns the last checkpoint's folder.

    Every rank calls this. Raises BadInput before a process group is joined where the recipe cannot work, and
    Requeue after a checkpoint when a signal asked for the end.
    """
    stopping = StopRequest()
    folder = model_folder(recipe.model)
    source = _source(recipe, folder)
    plan = _plan(recipe, source.dataset)
    run = Path(recipe.run)
    resumed = checkpoint.newest(run)
    state = _resume_state(resumed, plan, recipe)
    world = start_world(recipe.engine)
    if all_reduce_sum(state.step) != state.step * world.size:
        raise RuntimeError(f"{run}: ranks see different newest checkpoints, this one step {state.step}")
    if resumed and state.step >= _steps(recipe, plan):
        return resumed
    events = _open_run(recipe, run, world)
    model = _build(recipe, folder, source)
    if resumed:
        checkpoint.load_parameters(model, resumed)
    config = deepspeed_config(recipe.engine, recipe.optim, recipe.model.dtype, world.size)
    engine = Engine(model, config, recipe.optim)
    backend = choose_backend(recipe.model.attention, engine.device, DTYPES[recipe.model.dtype])
    if resumed:
        checkpoint.load_optimizer(engine, model, resumed, state.step)
    steps = _steps(recipe, plan)
    events.write(
        "start", step=state.step, steps=steps, ranks=world.size, attention=backend, samples=plan.total, plan=plan.digest
    )
    loader = Loader(source, plan, world.rank, world.size, sliding_window(folder))
    training = _Training(recipe, engine, model, plan, steps, events, Heartbeat(run, world.rank), stopping)
    last = training.loop(loader, state)
    events.write("end", step=steps)
    dist.barrier()
    return last


def check(recipe: Recipe) -> None:
    """Raise BadInput where `train` would, without joining a process group."""
    source = _source(recipe, model_folder(recipe.model))
    _resume_state(checkpoint.newest(Path(recipe.run)), _plan(recipe, source.dataset), recipe)
    deepspeed_config(recipe.engine, recipe.optim, recipe.model.dtype, recipe.engine.ranks)


def finished(recipe: Recipe) -> bool:
    """Whether the run's newest checkpoint is the last step of just this recipe."""
    plan = _plan(recipe, ShardDataset.open(Path(recipe.data.train)))
    folder = checkpoint.newest(Path(recipe.run))
    return folder is not None and _resume_state(folder, plan, recipe).step >= _steps(recipe, plan)


def _source(recipe: Recipe, folder: Path) -> Source:
    if not recipe.data.train:
        raise BadInput("data.train: empty; name the folder of the training shards")
    assembly = Assembly.read(folder)
    template = load_template(recipe.data.template or assembly.template)
    tokeniser = Tokeniser(
        load_tokenizer(folder), template, assembly.image_tokens, recipe.data.turns, recipe.data.max_length
    )
    return Source(recipe.data, tokeniser, Pixels.of(folder), recipe.seed)


def _steps(recipe: Recipe, plan: Plan) -> int:
    return min(plan.steps, recipe.optim.max_steps or plan.steps)


def _plan(recipe: Recipe, dataset: ShardDataset) -> Plan:
    data = recipe.data
    template = asdict(load_template(data.template)) if data.template else ""
    learning = [{**asdict(recipe.optim), "max_steps": 0}, asdict(recipe.adapter), recipe.model.dtype]
    return Plan(
        shard_sizes=tuple(dataset.shard_sizes),
        batch_size=data.batch_size,
        epochs=recipe.optim.epochs,
        seed=recipe.seed,
        window=data.window,
        bound=json.dumps([dataset.digest, template, data.turns, data.max_length, data.shift, learning]),
    )


def _open_run(recipe: Recipe, run: Path, world: World) -> Events:
    if world.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        recipe.save(run / "recipe.yaml")
        write_json(run / "run.json", describe_run())
    dist.barrier()
    return Events(run, enabled=world.rank == 0)


def describe_run() -> dict[str, Any]:
    """Versions, host, command and commit of this process, for `run.json`."""
    root = Path(__file__).parent.parent
    git = shutil.which("git")
    command = [git, "-C", str(root), "rev-parse", "HEAD"] if git else ["true"]
    commit = subprocess.run(command, capture_output=True, text=True)
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "git": commit.stdout.strip() or None,
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _build(recipe: Recipe, folder: Path, source: Source) -> PackedLlava:
    torch.manual_seed(recipe.seed)
    assembly = Assembly.read(folder)
    model = trainable(load_model(folder, recipe.model.dtype, packed=True), recipe.adapter, assembly)
    if isinstance(model, PeftModel) and recipe.adapter.new_tokens and recipe.adapter.align_tokens:
        texts = parallel_texts(source.dataset)
        start_at_translations(model, load_tokenizer(folder), texts, assembly.new_token_ids)
    return PackedLlava(model, source.pixels)


def _resume_state(folder: Path | None, plan: Plan, recipe: Recipe) -> State:
    """What a checkpoint has done; BadInput unless it was trained with this plan on this base."""
    base = weights_digest(Path(recipe.model.base))
    if folder is None:
        return State(step=0, plan=plan.digest, base=base, seed=recipe.seed, supervised_tokens=0)
    state = checkpoint.read_state(folder)
    if state.plan != plan.digest:
        what = "other data or settings (sections data, adapter, optim, or seed)"
    elif state.base != base:
        what = "another model.base"
    else:
        return state
    raise BadInput(f"{folder}: was trained with {what}; use another run directory or remove its checkpoints")


@dataclass
class _Training:
    recipe: Recipe
    engine: Engine
    model: PackedLlava
    plan: Plan
    steps: int
    events: Events
    heartbeat: Heartbeat
    stopping: StopRequest

    def loop(self, loader: Loader, state: State) -> Path:
        """Steps from `state` on; returns the last checkpoint's folder."""
        folder = Path()
        waiting = time.perf_counter()
        for step in loader.steps(state.step, self.steps):
            waited = time.perf_counter() - waiting
            measured = self.step(step)
            seconds = time.perf_counter() - waiting
            state = replace(state, step=step.index + 1, supervised_tokens=state.supervised_tokens + step.supervised)
            self.report(step, measured, seconds, waited)
            stop = self.stopping.agreed()
            if stop or state.step == self.steps or state.step % self.recipe.checkpoint.every == 0:
                run, keep = Path(self.recipe.run), self.recipe.checkpoint.keep
                folder = checkpoint.save(self.model, run, state, keep)
                self.events.write("checkpoint", step=state.step, folder=folder.name)
            if stop and state.step < self.steps:
                self.events.write("stop", step=state.step)
                raise Requeue
            waiting = time.perf_counter()
        return folder

    def step(self, step: Step) -> dict[str, float]:
        """One optimizer step. `loss` is per supervised token of the global batch."""
        # dropout depends on seed, step and rank alone, so a resumed run draws the same numbers
        torch.manual_seed(hash((self.recipe.seed, step.index, dist.get_rank())))
        rate = set_learning_rate(self.engine.optimizer, self.recipe.optim, step.index, self.plan.steps)
        total = 0.0
        for i, micro_batch in enumerate(step.micro_batches):
            loss_sum = self.engine.ds(micro_batch.to(self.engine.device))
            self.engine.backward(loss_sum, step.supervised, last=i + 1 == len(step.micro_batches))
            total += float(loss_sum.detach())
        norm = self.engine.step()
        return {"loss": all_reduce_sum(total) / step.supervised, "grad_norm": norm, "lr": rate}

    def report(self, step: Step, measured: dict[str, float], seconds: float, waited: float) -> None:
        """Event, heartbeat and log line of a step."""
        done, speed = step.index + 1, step.tokens / seconds
        self.events.write(
            "step",
            step=done,
            epoch=round(done / self.plan.steps * self.recipe.optim.epochs, 4),
            **measured,
            samples=len(step.samples),
            tokens=step.tokens,
            supervised_tokens=step.supervised,
            seconds=round(seconds, 4),
            data_wait_seconds=round(waited, 4),
            tokens_per_second=round(speed, 1),
        )
        self.heartbeat.beat(done)
        if dist.get_rank() == 0 and (done % 10 == 0 or done in (1, self.steps)):
            line = f"step {done}/{self.steps} loss {measured['loss']:.4f} lr {measured['lr']:.2e}"
            print(f"{self.recipe.name}: {line} {speed:,.0f} tokens/s", flush=True)


def losses(run: Path) -> dict[int, float]:
    """Loss by step as the events tell it; of a step that was run again after a restart, the last."""
    return {e["step"]: e["loss"] for e in read_events(run) if e["event"] == "step"}
