"""Section `cluster` of a recipe: where jobs run and what they ask for.

No value is ever shell, the lines of `setup` apart, which are meant to be; each stays one line of the batch script.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from shards.errors import BadInput

KINDS = ("slurm", "local", "debug")
# what the launcher itself says to sbatch
_TAKEN = (
    "account", "array", "constraint", "chdir", "cpus-per-task", "dependency", "error", "export", "export-file",
    "get-user-env", "gpus-per-node", "input", "job-name", "kill-on-invalid-dep", "mem", "nodes", "no-requeue", "ntasks",
    "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos", "requeue", "signal", "test-only", "time",
    "wait", "wrap",
)  # fmt: skip
_OPTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NOT_OURS = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")


@dataclass(kw_only=True)
class ContainerConfig:
    """What the tasks of a job run in; the batch script itself stays outside."""

    image: str = ""
    """Image file or address; empty for none."""
    kind: str = "pyxis"
    """pyxis (`srun --container-image`) or apptainer."""
    mounts: list[str] = field(default_factory=list)
    """Folders seen inside, as SOURCE:TARGET; the run directory and this package must be."""
    python: str = "python3"
    """Python inside the image that has ruvlm."""

    def __post_init__(self) -> None:
        if self.kind not in ("pyxis", "apptainer"):
            raise BadInput(f"cluster.container.kind: {self.kind!r:.100} is not one of pyxis, apptainer")
        for name, value in (("image", self.image), ("python", self.python), *(("mounts", m) for m in self.mounts)):
            plain(f"cluster.container.{name}", value)
        if any("," in mount for mount in self.mounts):
            raise BadInput("cluster.container.mounts: a comma separates mounts; give each an entry of its own")

    def srun(self) -> list[str]:
        """Arguments of srun."""
        if not self.image or self.kind != "pyxis":
            return []
        mounts = [f"--container-mounts={','.join(self.mounts)}"] if self.mounts else []
        return [f"--container-image={self.image}", *mounts]

    def command(self, gpus: int) -> list[str]:
        """What starts Python inside; empty without a container."""
        if not self.image:
            return []
        if self.kind == "pyxis":
            return [self.python]
        binds = [word for mount in self.mounts for word in ("--bind", mount)]
        return ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, self.image, self.python]


@dataclass(kw_only=True)
class StageConfig:
    """What one stage asks for instead; what is not given stays as in section `cluster`."""

    partition: str | None = None
    """Slurm partition."""
    time_minutes: int | None = None
    """Time limit."""
    gpus: int | None = None
    """GPUs of a task (of a node, in training)."""
    cpus_per_task: int | None = None
    """CPU cores a task."""
    mem_gb: int | None = None
    """Memory a node, in GB."""

    def check(self, key: str) -> None:
        """BadInput for what no cluster can give; `key` names the entry."""
        plain(f"{key}.partition", self.partition or "")
        for name in ("time_minutes", "gpus", "cpus_per_task", "mem_gb"):
            if (value := getattr(self, name)) is not None:
                _check_range(f"{key}.{name}", "gpus_per_node" if name == "gpus" else name, value)


@dataclass(kw_only=True)
class ClusterConfig:
    """Where jobs run and what they ask for."""

    kind: str = "local"
    """slurm, local (processes on this machine) or debug (inside the launcher's process)."""
    partition: str = ""
    """Slurm partition; empty takes the cluster's default."""
    account: str = ""
    """Slurm account; empty takes the user's default."""
    qos: str = ""
    """Slurm quality of service; empty takes the default."""
    constraint: str = ""
    """Features that nodes must have, such as a100; empty for none."""
    time_minutes: int = 1440
    """Time limit of a job."""
    nodes: int = 1
    """Nodes of the training job."""
    gpus_per_node: int = 0
    """GPUs, and training tasks, on each node; 0 trains on CPUs."""
    tasks_per_node: int = 1
    """Training tasks on each node where there are no GPUs."""
    cpus_per_task: int = 2
    """CPU cores a task."""
    mem_gb: int = 16
    """Memory a node, in GB; 0 takes all of it."""
    eval_parts: int = 1
    """Jobs that share an evaluation."""
    translate_parts: int = 1
    """Jobs that share the translation of each set."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, such as {reservation: spring, exclusive: ''}; empty is a flag."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job, such as `module load cuda`; one that fails ends the job with code 2."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the commands, such as {NCCL_SOCKET_IFNAME: ib0}."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """Stages that ask for something else, such as {merge: {partition: cpu}}."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"cluster.kind: {self.kind!r:.100} is not one of {', '.join(KINDS)}")
        for name in ("partition", "account", "qos", "constraint"):
            plain(f"cluster.{name}", getattr(self, name))
        for line in self.setup:
            plain("cluster.setup", line)
        for name in _RANGES:
            _check_range(f"cluster.{name}", name, getattr(self, name))
        if self.nodes * max(self.gpus_per_node, self.tasks_per_node) > _MOST_TASKS:
            raise BadInput(f"cluster.nodes: {self.nodes} nodes of so many tasks are more than {_MOST_TASKS} tasks")
        for name, own in self.stages.items():
            own.check(f"cluster.stages.{name}")
        _check_options(self.sbatch)
        _check_environment(self.environment)

    def of(self, stage: str) -> "ClusterConfig":
        """What a stage asks for, without its GPUs."""
        own = self.stages.get(stage, StageConfig())
        given = {name: getattr(own, name) for name in ("partition", "time_minutes", "cpus_per_task", "mem_gb")}
        given = {name: value for name, value in given.items() if value is not None}
        return replace(self, **_MODEST.get(stage, {}) | given)

    def gpus(self, stage: str, default: int) -> int:
        """GPUs of a stage that by itself asks for `default`."""
        own = self.stages.get(stage, StageConfig()).gpus
        return default if own is None else own


# a merge streams, however large a node the other stages ask for
_MODEST = {"merge": {"cpus_per_task": 4, "mem_gb": 4}}
# more than any cluster has: a slip of the pen must not have millions of jobs or tasks made
_MOST_TASKS = 100_000
_RANGES = {
    "time_minutes": (1, 10_000_000), "nodes": (1, 10_000), "gpus_per_node": (0, 1000), "tasks_per_node": (1, 10_000),
    "cpus_per_task": (1, 10_000), "mem_gb": (0, 1_000_000), "eval_parts": (1, 10_000), "translate_parts": (1, 10_000),
}  # fmt: skip


def _check_range(key: str, name: str, value: int) -> None:
    least, most = _RANGES[name]
    if value < least:
        raise BadInput(f"{key}: {value} must be at least {least}")
    if value > most:
        raise BadInput(f"{key}: {value} must be at most {most}")


def plain(key: str, value: Any) -> None:
    """BadInput unless `value` is one line without control characters: a line break would end a line of the script."""
    if not isinstance(value, str) or not value.isprintable():
        raise BadInput(f"{key}: {value!r:.200} must be one plain line")


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if not _OPTION.fullmatch(name):
            raise BadInput(
                f"cluster.sbatch: {name!r:.100} is no long option of sbatch; write it without dashes in front"
            )
        if name in _TAKEN:
            raise BadInput(f"cluster.sbatch: {name} is the launcher's to say; see the other keys of section cluster")
        plain(f"cluster.sbatch.{name}", value)


def _check_environment(variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or name.startswith(_NOT_OURS):
            raise BadInput(f"cluster.environment: {name!r:.100} is no name for a variable of yours")
        plain(f"cluster.environment.{name}", value)
