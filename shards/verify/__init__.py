"""The full check of a dataset folder."""

from shards.verify.run import verify
from shards.verify.shard import Problem

__all__ = ["Problem", "verify"]
