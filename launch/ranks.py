"""Start the ranks of a training on this machine when no launcher did."""

import os
import subprocess
import sys
from collections.abc import Sequence


def in_world() -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    return "RANK" in os.environ or (int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ)


def start_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run `vlm ARGUMENTS` in `ranks` processes under torchrun; returns the first failing rank's exit code, or 0.

    A rank that dies takes the others with it.
    """
    # DeepSpeed's ranks compile their CPU helper one after the other: torchrun must not see that as a hang
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    return subprocess.run([*command, "-m", "launch.cli", *arguments], env=environment).returncode
