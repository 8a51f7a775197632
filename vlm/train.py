"""Train a recipe: the whole run as named steps."""

import os
import platform
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import write_json
from vlm import checkpoint
from vlm.config import Recipe
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.loader import Loader, Source, Step
from vlm.data.plan import Plan
from vlm.data.template import load_template
from vlm.engine import Engine, all_reduce_sum, deepspeed_config, start_world
from vlm.events import Events, Heartbeat
from vlm.model.adapter import trainable
from vlm.model.assemble import Assembly
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
    folder = model_folder(recipe.model)
    source = _source(recipe, folder)
    plan = _plan(recipe, source.dataset)
    steps = _steps(recipe, plan)
    run = Path(recipe.run)
    done = _finished(run, plan, steps)
    if done:
        return done

    world = start_world(recipe.engine)
    events = _open_run(recipe, run, world)
    model = _build(recipe, folder, source.pixels)
    resumed = checkpoint.newest(run)
    start = _resume_state(resumed, plan)
    if resumed:
        checkpoint.load_parameters(model, resumed)
    config = deepspeed_config(recipe.engine, recipe.optim, recipe.model.dtype, world.size)
    engine = Engine(model, config, recipe.optim)
    backend = choose_backend(recipe.model.attention, engine.device, DTYPES[recipe.model.dtype])
    if resumed:
        checkpoint.load_optimizer(engine, model, resumed, start)
    events.write(
        "start", step=start, steps=steps, ranks=world.size, attention=backend, samples=plan.total, plan=plan.digest
    )
    loader = Loader(source, plan, world.rank, world.size, sliding_window(folder))
    last = _loop(recipe, engine, model, loader, plan, start, steps, events, Heartbeat(run, world.rank))
    events.write("end", step=steps)
    dist.barrier()
    return last


def check(recipe: Recipe) -> None:
    """Raise BadInput where `train` would, without joining a process group."""
    source = _source(recipe, model_folder(recipe.model))
    _resume_state(checkpoint.newest(Path(recipe.run)), _plan(recipe, source.dataset))
    deepspeed_config(recipe.engine, recipe.optim, recipe.model.dtype, recipe.engine.ranks)


def finished(recipe: Recipe) -> bool:
    """Whether the run's newest checkpoint is the last step of just this recipe's plan."""
    dataset = ShardDataset.open(Path(recipe.data.train))
    plan = _plan(recipe, dataset)
    return _finished(Path(recipe.run), plan, _steps(recipe, plan)) is not None


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
    return Plan(
        shard_sizes=tuple(dataset.shard_sizes),
        batch_size=recipe.data.batch_size,
        epochs=recipe.optim.epochs,
        seed=recipe.seed,
        window=recipe.data.window,
        data_digest=dataset.digest,
    )


def _finished(run: Path, plan: Plan, steps: int) -> Path | None:
    folder = checkpoint.newest(run)
    state = checkpoint.read_state(folder) if folder else None
    return folder if state and state.step == steps and state.plan == plan.digest else None


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
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "git": commit.stdout.strip() or None,
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _build(recipe: Recipe, folder: Path, pixels: Pixels) -> PackedLlava:
    torch.manual_seed(recipe.seed)
    llava = load_model(folder, recipe.model.dtype, packed=True)
    return PackedLlava(trainable(llava, recipe.adapter, Assembly.read(folder)), pixels)


def _resume_state(folder: Path | None, plan: Plan) -> int:
    """Steps done by a checkpoint; BadInput unless it was trained with this plan."""
    if folder is None:
        return 0
    state = checkpoint.read_state(folder)
    if state.plan != plan.digest:
        raise BadInput(
            f"{folder}: was trained with another plan (data, seed, batch size or epochs); use another run directory"
        )
    return state.step


def _loop(
    recipe: Recipe,
    engine: Engine,
    model: PackedLlava,
    loader: Loader,
    plan: Plan,
    start: int,
    steps: int,
    events: Events,
    heartbeat: Heartbeat,
) -> Path:
    seen = 0
    folder = checkpoint.step_folder(Path(recipe.run), start)
    stopping = StopRequest()
    waiting = time.perf_counter()
    for step in loader.steps(start, steps):
        waited = time.perf_counter() - waiting
        # dropout depends on seed, step and rank alone, so a resumed run draws the same numbers
        torch.manual_seed(hash((recipe.seed, step.index, dist.get_rank())))
        rate = set_learning_rate(engine.optimizer, recipe.optim, step.index, plan.steps)
        loss, norm = run_step(engine, model, step)
        seconds = time.perf_counter() - waiting
        seen += step.supervised
        events.write(
            "step",
            step=step.index + 1,
            epoch=round((step.index + 1) / plan.steps * recipe.optim.epochs, 4),
            loss=loss,
            grad_norm=norm,
            lr=rate,
            samples=len(step.samples),
            tokens=step.tokens,
            supervised_tokens=step.supervised,
            seconds=round(seconds, 4),
            data_wait_seconds=round(waited, 4),
            tokens_per_second=round(step.tokens / seconds, 1),
        )
        heartbeat.beat(step.index + 1)
        _show(recipe.name, step.index + 1, steps, loss, rate, step.tokens / seconds)
        stop = stopping.agreed()
        if stop or step.index + 1 == steps or (step.index + 1) % recipe.checkpoint.every == 0:
            state = checkpoint.State(step.index + 1, plan.digest, recipe.seed, seen)
            folder = checkpoint.save(engine, model, Path(recipe.run), state, recipe.checkpoint.keep)
            events.write("checkpoint", step=step.index + 1, folder=folder.name)
        if stop and step.index + 1 < steps:
            events.write("stop", step=step.index + 1)
            raise Requeue
        waiting = time.perf_counter()
    return folder


def run_step(engine: Engine, model: PackedLlava, step: Step) -> tuple[float, float]:
    """One optimizer step; returns loss per supervised token of the global batch, and gradient norm."""
    total = 0.0
    for i, micro_batch in enumerate(step.micro_batches):
        loss_sum = engine.ds(micro_batch.to(engine.device))
        engine.backward(loss_sum, step.supervised, last=i + 1 == len(step.micro_batches))
        total += float(loss_sum.detach())
    norm = engine.step()
    return all_reduce_sum(total) / step.supervised, norm


def _show(name: str, step: int, steps: int, loss: float, rate: float, speed: float) -> None:
    if dist.get_rank() == 0 and (step % 10 == 0 or step in (1, steps)):
        print(f"{name}: step {step}/{steps} loss {loss:.4f} lr {rate:.2e} {speed:,.0f} tokens/s", flush=True)


def losses(run: Path) -> dict[int, float]:
    """Loss by step as the events tell it; of a step that was run again after a restart, the last."""
    from vlm.events import read_events

    return {e["step"]: e["loss"] for e in read_events(run) if e["event"] == "step"}
