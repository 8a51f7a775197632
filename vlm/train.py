"""Train a recipe: the whole run as named steps."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel

from shards.errors import BadInput
from shards.files import write_json
from vlm import checkpoint
from vlm.checkpoint import State
from vlm.config import Recipe
from vlm.data.cost import Cost
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels
from vlm.data.loader import Loader, Source
from vlm.data.mixture import Corpus
from vlm.data.plan import Plan
from vlm.data.skips import Skips
from vlm.data.template import load_template
from vlm.engine import Engine, all_reduce_sum, deepspeed_config, start_world
from vlm.estimate import estimate
from vlm.events import Events, Heartbeat, read_events
from vlm.heldout import Heldout
from vlm.lock import Fence, beside_rank_zero, only_training
from vlm.loop import Training
from vlm.model.adapter import trainable
from vlm.model.alignment import parallel_texts, start_at_translations
from vlm.model.assemble import Assembly, weights_digest
from vlm.model.attention import choose_backend
from vlm.model.blocks import prepare_blocks
from vlm.model.load import DTYPES, load_model, load_tokenizer, model_folder
from vlm.model.packed import PackedLlava
from vlm.speed import Work, peak_tflops
from vlm.stop import listen
from vlm.tensorboard import Board, require_extra
from vlm.watchdog import Watchdog
from vlm.world import World, find_world

VERSIONS = ("torch", "deepspeed", "transformers", "peft", "webdataset", "submitit", "omegaconf")


def train(recipe: Recipe, begun: Callable[[], None] = lambda: None) -> Path:
    """Train to the end, resuming from the newest verified checkpoint; returns the last checkpoint's folder.

    Every rank calls this. Raises BadInput before a process group is joined where the recipe cannot work, and
    Requeue after a checkpoint when a signal asked for the end. `begun` is called on rank 0 once it holds the run.
    """
    listen()
    run, world = Path(recipe.run), find_world()
    with ExitStack() as held:
        fence = None
        if world is None or world.rank == 0:
            fence = held.enter_context(only_training(run))
            begun()
        else:
            beside_rank_zero(run)
        return _train(recipe, held, fence)


def _train(recipe: Recipe, held: ExitStack, fence: Fence | None) -> Path:
    folder = model_folder(recipe.model)
    source = _source(recipe, folder)
    heldout = _heldout(recipe, folder)
    plan = _plan(recipe, source.dataset)
    run, damaged = Path(recipe.run), list[str]()
    resumed = checkpoint.newest(run, damaged)
    state = _resume_state(resumed, plan, recipe)
    world = start_world(recipe.engine)
    number = int(all_reduce_sum(fence.number if fence else 0))
    fence = fence or held.enter_context(Fence(run, number))
    if all_reduce_sum(state.step) != state.step * world.size:
        raise RuntimeError(f"{run}: ranks see different newest checkpoints, this one step {state.step}")
    steps = _steps(recipe, plan)
    if resumed and state.step >= steps:
        return resumed
    events = _open_run(recipe, run, world)
    for warning in source.warnings if world.rank == 0 else ():
        print(f"vlm: {warning}", file=sys.stderr, flush=True)
    for problem in damaged if world.rank == 0 else ():
        events.write("damaged", problem=problem)
        print(f"vlm: {problem}; this checkpoint is passed over", file=sys.stderr, flush=True)
    watchdog = Watchdog(run, world.rank, world.size, recipe.engine.watchdog, recipe.engine.watchdog_seconds)
    watchdog.hung = lambda silent: events.write("hang", silent_ranks=silent)
    held.enter_context(watchdog)
    model = _build(recipe, folder, source)
    if resumed:
        checkpoint.load_parameters(model, resumed)
    config = deepspeed_config(recipe.engine, recipe.optim, recipe.model.dtype, world.size)
    engine = Engine(model, config, recipe.optim)
    backend = choose_backend(recipe.model.attention, engine.device, DTYPES[recipe.model.dtype])
    if resumed:
        checkpoint.load_optimizer(engine, model, resumed, state.updates)
        engine.set_loss_scale(state.loss_scale)
    events.write(
        "start", step=state.step, steps=steps, ranks=world.size, attention=backend, samples=plan.total, plan=plan.digest
    )
    skips = Skips(recipe.data.max_skipped, plan.samples, state.skipped)
    training = Training(recipe, engine, model, plan, steps, events, Heartbeat(run, world.rank), watchdog, skips)
    training.heldout, training.work, training.allowed = heldout, _work(recipe), fence.check
    if recipe.engine.tensorboard and world.rank == 0:
        training.board = held.enter_context(closing(Board(run, state.step)))
    tower = any(p.requires_grad for name, p in model.named_parameters() if "vision_tower" in name.split("."))
    loader = Loader(source, plan, world.rank, world.size, Cost.of_model(folder, tower), engine.device)
    last = training.loop(loader, state)
    events.write("end", step=steps)
    dist.barrier()
    return last


def check(recipe: Recipe) -> None:
    """Raise BadInput where `train` would, without joining a process group."""
    folder = model_folder(recipe.model)
    source = _source(recipe, folder)
    _heldout(recipe, folder)
    if recipe.engine.tensorboard:
        require_extra()
    _resume_state(checkpoint.newest(Path(recipe.run)), _plan(recipe, source.dataset), recipe)
    deepspeed_config(recipe.engine, recipe.optim, recipe.model.dtype, recipe.engine.ranks)


def finished(recipe: Recipe) -> bool:
    """Whether the run's newest checkpoint is the last step of just this recipe."""
    plan = _plan(recipe, Corpus.open(recipe.data.train, recipe.data.mix))
    folder = checkpoint.newest(Path(recipe.run))
    return folder is not None and _resume_state(folder, plan, recipe).step >= _steps(recipe, plan)


def _source(recipe: Recipe, folder: Path) -> Source:
    return Source(recipe.data, _tokeniser(recipe, folder), Pixels.of(folder), recipe.seed)


def _heldout(recipe: Recipe, folder: Path) -> Heldout | None:
    if not recipe.heldout.data:
        return None
    return Heldout(recipe.heldout, recipe.data, _tokeniser(recipe, folder), Pixels.of(folder))


def _tokeniser(recipe: Recipe, folder: Path) -> Tokeniser:
    assembly = Assembly.read(folder)
    template = load_template(recipe.data.template or assembly.template)
    return Tokeniser(load_tokenizer(folder), template, assembly.image_tokens, recipe.data.turns, recipe.data.max_length)


def _work(recipe: Recipe) -> Work | None:
    """What a sample takes, where the GPU's peak is known."""
    peak = peak_tflops(recipe.model.dtype)
    return Work(estimate(recipe, 1).tflop_per_sample, 0.0, peak) if peak else None


def _steps(recipe: Recipe, plan: Plan) -> int:
    return min(plan.steps, recipe.optim.max_steps or plan.steps)


def _plan(recipe: Recipe, dataset: Corpus) -> Plan:
    data = recipe.data
    template = asdict(load_template(data.template)) if data.template else ""
    learning = [
        {**asdict(recipe.optim), "max_steps": 0, "max_nonfinite": 0},
        asdict(recipe.adapter),
        recipe.model.dtype,
    ]
    return Plan(
        shard_sizes=tuple(dataset.shard_sizes),
        batch_size=data.batch_size,
        epochs=recipe.optim.epochs,
        seed=recipe.seed,
        window=data.window,
        parts=dataset.parts,
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
    llava = load_model(folder, recipe.model.dtype, packed=True)
    prepare_blocks(llava, recipe.model.checkpoint_blocks, recipe.model.compile_blocks, recipe.model.liger)
    model = trainable(llava, recipe.adapter, assembly)
    if isinstance(model, PeftModel) and recipe.adapter.aligns_tokens:
        texts = sorted({pair for each in source.dataset.sets for pair in parallel_texts(each)})
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


def losses(run: Path) -> dict[int, float]:
    """Loss by step as the events tell it; of a step that was run again after a restart, the last."""
    return {e["step"]: e["loss"] for e in read_events(run) if e["event"] == "step"}
