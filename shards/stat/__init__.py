"""What a dataset holds, in figures and as a page."""

from shards.stat.run import DatasetStat, stat

__all__ = ["DatasetStat", "stat"]
