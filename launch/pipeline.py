"""`vlm launch`: the stages of a recipe as submitit jobs, each behind the one before it.

What training leaves decides the stages. An adapter is evaluated and merged, or answers beside the base where it cannot
be merged; projector and full training leave weights of the model itself, which are exported and then evaluated.
"""

import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from launch.cluster import executor
from launch.fence import launcher
from launch.recipe import PipelineRecipe, load
from launch.stages import Stage, StageFailed, run_command, run_stages
from shards.errors import BadInput
from vlm.model.adapter import Leaves

STAGES = ("train", "export", "eval", "merge", "report")
# as in slurm/train.sh: a rank that exits with 75 must not have the others killed, and 75 asks for another turn
_SRUN = ("--kill-on-bad-exit=0", "--wait=60")
_REQUEUE = ["code=$?", 'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi', 'exit "$code"']


@dataclass(frozen=True)
class Job:
    """One stage as arguments of `vlm`, with the nodes that it takes on Slurm and the GPUs, a task each, on a node."""

    stage: str
    arguments: list[str]
    nodes: int = 1
    gpus: int = 0


def launch(stage: str, name: str, overrides: Sequence[str], cluster: str | None, dry_run: bool) -> None:
    """Submit (slurm) or run (local, debug) one stage or the pipeline; with `dry_run` only print what would be done."""
    recipe = load(name, [*overrides, *([f"cluster.kind={cluster}"] if cluster else [])])
    act = describe if dry_run else submit if recipe.cluster.kind == "slurm" else _run
    act(recipe, plan(stage, recipe, [name, *overrides]))


def plan(stage: str, recipe: PipelineRecipe, arguments: list[str]) -> list[Job]:
    """The jobs in order, BadInput for what would fail only after hours; the pipeline evaluates what it trained."""
    if stage not in (*STAGES, "pipeline"):
        raise BadInput(f"launch {stage}: no such stage; choose one of {', '.join(STAGES)}, pipeline")
    if stage in ("eval", "merge", "pipeline") and not recipe.eval.data:
        raise BadInput("eval.data: empty; name the folder of the shards with the questions")
    if stage in STAGES and (reason := _left_out(recipe).get(stage)):
        raise BadInput(f"launch {stage}: {reason}")
    # a line break would end a #SBATCH line, and what follows would be run
    if not "".join((recipe.name, recipe.run, recipe.cluster.partition, recipe.cluster.account)).isprintable():
        raise BadInput(f"{recipe.name!r}: name, run, cluster.partition and cluster.account must be one plain line each")
    adapter = [] if recipe.eval.adapter else ["eval.adapter=latest"]
    gpus, exported = recipe.cluster.gpus_per_node, str(Path(recipe.run) / "model")
    trained = [f"model.base={exported}"] if recipe.adapter.leaves is Leaves.MODEL else adapter
    jobs = (
        Job("train", ["train", *arguments], recipe.cluster.nodes, gpus),
        Job("export", ["export", *arguments, "--out", exported]),
        Job("eval", ["eval", *arguments, *(trained if stage == "pipeline" else [])], gpus=min(1, gpus)),
        Job("merge", ["merge", *arguments, *adapter], gpus=min(1, gpus)),
        Job("report", ["report", recipe.run]),
    )
    return [job for job in jobs if stage == job.stage or (stage == "pipeline" and job.stage not in _left_out(recipe))]


def _left_out(recipe: PipelineRecipe) -> dict[str, str]:
    """Stages that the method has no use for, and why."""
    method, leaves = recipe.adapter.method, recipe.adapter.leaves
    if leaves is Leaves.MODEL:
        return {"merge": f"adapter.method={method} leaves no adapter; `vlm launch export` writes the trained model"}
    why = {"export": f"adapter.method={method} leaves an adapter, the model's own weights are as they were"}
    if leaves is Leaves.BESIDE:
        why["merge"] = f"what adapter.method={method} learns cannot be merged; evaluation runs it beside the base"
    return why


def describe(recipe: PipelineRecipe, jobs: Sequence[Job]) -> None:
    """Print the graph, and of each job its command and, on Slurm, its sbatch header (numbers come with queueing)."""
    on_slurm = recipe.cluster.kind == "slurm"
    print(f"{' -> '.join(job.stage for job in jobs)} on {recipe.cluster.kind}, run {recipe.run}")
    if len(jobs) > 1 and recipe.adapter.leaves is Leaves.BESIDE:
        print(f"no merge: {_left_out(recipe)['merge']}")
    for job, before in zip(jobs, [None, *jobs], strict=False):
        lines = header(recipe, job, f"JOB_OF_{before.stage.upper()}" if before else None) if on_slurm else []
        print("", *lines, shlex.join(["vlm", *job.arguments]), sep="\n")


def header(recipe: PipelineRecipe, job: Job, after: str | None) -> list[str]:
    """The #SBATCH lines of the file that `submit` gives to sbatch, made where there is no Slurm."""
    asked, folder = recipe.cluster, (Path(recipe.run) / "jobs" / job.stage).absolute()
    text = _make_sbatch_string(
        "", folder, f"{recipe.name}-{job.stage}", asked.partition or None, asked.time_minutes, job.nodes,
        max(1, job.gpus), asked.cpus_per_task, gpus_per_node=job.gpus or None, mem=f"{asked.mem_gb}GB",
        account=asked.account or None, additional_parameters=_additional(after),
    )  # fmt: skip
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def submit(recipe: PipelineRecipe, jobs: Sequence[Job]) -> None:
    """Queue the jobs on Slurm, each to start once the one before has ended well."""
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise BadInput("cluster.kind=slurm: no sbatch and srun on PATH; log in to the cluster or take --cluster local")
    number = None
    for job in jobs:
        place, name = Path(recipe.run) / "jobs" / job.stage, f"{recipe.name}-{job.stage}"
        made: Any = executor(recipe.cluster, place, name, max(1, job.gpus))
        made.update_parameters(
            nodes=job.nodes, gpus_per_node=job.gpus or None, slurm_additional_parameters=_additional(number),
            slurm_srun_args=[*_SRUN, f"--cpus-per-task={recipe.cluster.cpus_per_task}"], slurm_teardown=_REQUEUE,
        )  # fmt: skip
        number = made.submit(in_job, job.arguments).job_id
        print(f"{job.stage}: job {number}", flush=True)


def in_job(arguments: Sequence[str]) -> None:
    """Inside a Slurm job: run one `vlm` command; the process takes its exit code, on which the next job waits."""
    # submitit would requeue the job at once and so kill the ranks while they save; they obey the signal themselves
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if code := run_command(arguments):
        sys.exit(code)


def _additional(after: str | None) -> dict[str, Any]:
    return {"requeue": True} | ({"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"} if after else {})


def _run(recipe: PipelineRecipe, jobs: Sequence[Job]) -> None:
    # each command itself finds out what of its work is done
    stages = [Stage(job.stage, [job.arguments], lambda: False) for job in jobs]
    with launcher(Path(recipe.run)):
        try:
            run_stages(stages, recipe.cluster, Path(recipe.run) / "jobs", lambda line: print(line, flush=True))
        except StageFailed as failure:
            print(f"vlm launch: {failure}; mend the cause and start again: it goes on from there", file=sys.stderr)
            raise SystemExit(failure.code) from None
