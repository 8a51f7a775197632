"""The test's own Slurm: two nodes with accounting, requeue, preemption."""

import pytest

from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm


def test_two_nodes_run_a_job_and_account_for_it(cluster: Cluster) -> None:
    said = cluster.call("srun", "--nodes=2", "--gres=gpu:1", "printenv", "SLURMD_NODENAME")
    assert sorted(said.split()) == ["n1", "n2"]
    cluster.wait("accounting", lambda: "COMPLETED" in cluster.call("sacct", "--noheader", "--format=State"))
