"""A real Slurm of two nodes on this machine, everything of it below one folder.

munged, mariadbd, slurmdbd, slurmctld and two slurmd, started from configuration files written here, on ports of their
own, with an environment (`SLURM_CONF`, `MYSQL_UNIX_PORT`) that no other Slurm of the machine shares. Needs root and
the packages of `PACKAGES`.
"""

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "srun", "sacctmgr")
NODES = ("n1", "n2")
# seconds a requeued job is held, which Slurm takes from the lifetime of its credentials (120 by default)
HOLD_SECONDS = 10

_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock,cred_expire={hold}
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdSpoolDir={root}/spool-%n
SlurmdPidFile={root}/slurmd-%n.pid
SlurmdLogFile={root}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
MinJobAge=3600
UnkillableStepTimeout=30
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStoragePass={root}/munge.sock
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=16000 Gres=gpu:2"
_DBD_CONF = """
AuthType=auth/munge
AuthInfo={root}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser=root
PidFile={root}/slurmdbd.pid
LogFile={root}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


@dataclass
class Cluster:
    """A running Slurm. `environment` is what its clients need."""

    root: Path
    ports: tuple[int, ...]
    daemons: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(self.root / "mysql.sock"),
        }

    def call(self, *command: str, check: bool = True) -> str:
        """Standard output of a Slurm command."""
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        if check and ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.returncode}: {ended.stderr.strip()}")
        return ended.stdout.strip()

    def start(self, name: str) -> None:
        """Start a daemon by its name: munged, mariadbd, slurmdbd, slurmctld, or a node's."""
        log = open(self.root / f"{name}.out", "ab")  # noqa: SIM115
        self.daemons[name] = subprocess.Popen(
            self._command(name), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        log.close()

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a daemon a signal and wait for its end; what it started goes on."""
        process = self.daemons.pop(name)
        process.send_signal(number)
        process.wait(60)

    def _command(self, name: str) -> list[str]:
        root = self.root
        if name == "munged":
            names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
            files = [f"--{n}={root}/munge.{'sock' if n == 'socket' else n}" for n in names]
            return ["munged", "--foreground", "--force", *files]
        if name == "mariadbd":
            return [
                "mariadbd", "--no-defaults", "--user=root", "--skip-networking", "--skip-log-bin",
                "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900",
                f"--datadir={root}/mysql", f"--socket={root}/mysql.sock", f"--pid-file={root}/mysql.pid",
            ]  # fmt: skip
        if name in NODES:
            return ["slurmd", "-D", "-N", name, "-f", str(root / "slurm.conf")]
        if name == "slurmctld":
            return ["slurmctld", "-D", "-f", str(root / "slurm.conf")]
        return ["slurmdbd", "-D"]

    def wait(self, what: str, true: Callable[[], bool], seconds: float = 60) -> None:
        """Until `true` says so; RuntimeError with `what` and the controller's last lines when it does not."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                log = self.root / "slurmctld.log"
                tail = log.read_text("utf-8", "replace").splitlines()[-20:] if log.exists() else []
                raise RuntimeError("\n".join([f"{what}: not within {seconds:.0f} s", *tail]))
            time.sleep(0.1)

    def nodes_up(self) -> bool:
        """Whether every node answers and takes work."""
        states = self.call("sinfo", "--noheader", "--Node", "--format=%t", check=False).split()
        return len(states) >= 2 * len(NODES) and all(state in ("idle", "mix", "alloc") for state in states)

    def stop(self) -> None:
        """End all jobs and daemons, the youngest daemon first."""
        with suppress(Exception):
            self.call("scancel", "--user=root", check=False)
            self.wait("empty queue", lambda: not self.call("squeue", "--noheader"), 20)
        for name in reversed(list(self.daemons)):
            process = self.daemons.pop(name)
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def missing() -> str:
    """Why there can be no cluster here; empty when there can."""
    if os.getuid():
        return "Slurm's daemons are started as root"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    return f"{', '.join(absent)} missing: apt-get install {' '.join(PACKAGES)}" if absent else ""


@contextmanager
def running(root: Path) -> Iterator[Cluster]:
    """A cluster with its files in the new folder `root`; ended with everything it started."""
    os.environ["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    root.mkdir(parents=True)
    # munged and slurmd refuse folders that others may write
    root.chmod(0o755)
    cluster = Cluster(root, tuple(_free_ports(2 + len(NODES))))
    _configure(cluster)
    try:
        _start(cluster)
        yield cluster
    finally:
        cluster.stop()


def _configure(cluster: Cluster) -> None:
    root, host = cluster.root, socket.gethostname().split(".")[0]
    for name in ("state", "mysql", *(f"spool-{node}" for node in NODES)):
        (root / name).mkdir()
    (root / "munge.key-file").write_bytes(secrets.token_bytes(128))
    (root / "munge.key-file").chmod(0o600)
    nodes = [_NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, cluster.ports[2:], strict=True)]
    fields = {"root": root, "host": host, "ports": cluster.ports, "hold": HOLD_SECONDS, "nodes": "\n".join(nodes)}
    (root / "slurm.conf").write_text(_SLURM_CONF.format(**fields), "utf-8")
    (root / "slurmdbd.conf").touch(0o600)
    (root / "slurmdbd.conf").write_text(_DBD_CONF.format(**fields), "utf-8")
    # devices to ask for: as many null devices as nodes claim to have GPUs
    for number in (0, 1):
        os.mknod(root / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "gres.conf").write_text(f"Name=gpu File={root}/gpu[0-1]\n", "utf-8")


def _start(cluster: Cluster) -> None:
    root = cluster.root
    cluster.start("munged")
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={root}/mysql", "--skip-test-db",
         "--auth-root-authentication-method=normal"],
        check=True, capture_output=True,
    )  # fmt: skip
    cluster.start("mariadbd")
    cluster.wait("munge", (root / "munge.sock").exists)
    cluster.wait("the database", lambda: _accepts(root / "mysql.sock"))
    cluster.start("slurmdbd")
    cluster.wait("slurmdbd", lambda: "test" in _accounting(cluster))
    cluster.start("slurmctld")
    for node in NODES:
        cluster.start(node)
    cluster.wait("nodes", cluster.nodes_up)


def _accounting(cluster: Cluster) -> Sequence[str]:
    cluster.call("sacctmgr", "--immediate", "add", "cluster", "test", check=False)
    return cluster.call("sacctmgr", "--noheader", "show", "cluster", "format=Cluster", check=False).split()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
