"""A raw set to a dataset folder: rows prepared ahead by threads, written in order, journalled a shard at a time."""

from shards.build.run import build
from shards.build.settings import BuildSettings

__all__ = ["BuildSettings", "build"]
