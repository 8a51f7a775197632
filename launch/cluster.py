"""Section `cluster` of a recipe, and submitit's executor made from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit

from shards.errors import BadInput


@dataclass(kw_only=True)
class ClusterConfig:
    """Where jobs run and what they ask for."""

    kind: str = "local"
    """slurm, local (processes on this machine) or debug (inside the launcher's process)."""
    partition: str = ""
    """Slurm partition; empty takes the cluster's default."""
    account: str = ""
    """Slurm account; empty takes the user's default."""
    time_minutes: int = 1440
    """Time limit of a job."""
    nodes: int = 1
    """Nodes of the training job."""
    gpus_per_node: int = 0
    """GPUs, and training tasks, on each node; 0 trains on CPUs."""
    cpus_per_task: int = 2
    """CPU cores a task."""
    mem_gb: int = 16
    """Memory a node, in GB."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job, such as `module load cuda`."""

    def __post_init__(self) -> None:
        if self.kind not in ("slurm", "local", "debug"):
            raise BadInput(f"cluster.kind: {self.kind!r} is not one of slurm, local, debug")


def executor(config: ClusterConfig, folder: Path, name: str, tasks: int = 1) -> submitit.Executor:
    """An executor for one stage; its logs and pickles lie in `folder`, readable by the owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    made: Any = submitit.AutoExecutor(folder, cluster=config.kind)
    parameters: dict[str, Any] = {"name": name, "timeout_min": config.time_minutes, "tasks_per_node": tasks}
    if config.kind == "slurm":
        parameters |= {
            "cpus_per_task": config.cpus_per_task,
            "mem_gb": config.mem_gb,
            "slurm_setup": config.setup or None,
            "slurm_partition": config.partition or None,
            "slurm_account": config.account or None,
        }
    made.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
    return made
