"""The texts of a dataset, as tokenizers are trained on them."""

from pathlib import Path

from shards.dataset import ShardDataset
from shards.sample import Text


def dataset_texts(*folders: Path) -> list[str]:
    """Distinct message texts of the datasets, sorted, so that what is learned on them does not depend on order."""
    samples = (sample for folder in folders for sample in ShardDataset.open(folder))
    return sorted({part.text for s in samples for m in s.messages for part in m.content if isinstance(part, Text)})
