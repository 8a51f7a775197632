"""What the documents show works."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from shards.build import BuildSettings, build
from shards.dataset import ShardDataset
from shards.readers import READERS, ReaderOptions
from vlm.config import RECIPES, Recipe

DOCS = Path(__file__).parent.parent / "docs"


def test_reader_of_the_readers_page(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "readers.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "vqa_tsv"}
    exec(code, names)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    (tmp_path / "t.tsv").write_text("image\tquestion\tanswer\na.png\tчто это?\tкот\nb.png\tчто?\tкот\n")
    options = ReaderOptions(input=tmp_path / "t.tsv", images=tmp_path, split="test")
    info = build(names["VQA_TSV"], options, tmp_path / "out", settings=BuildSettings(max_rejected=0.5))
    assert (info.samples, info.rejected, info.lang) == (1, 1, "ru")
    (sample,) = ShardDataset.open(tmp_path / "out")
    assert (sample.key, sample.questions[0].answers) == ("vqatsv-test-000000", ("кот",))


@pytest.mark.parametrize("section", ["model", "adapter", "data", "optim", "engine", "checkpoint", "heldout"])
def test_the_training_page_lists_every_key_with_its_default(section: str) -> None:
    page = (DOCS / "training.md").read_text("utf-8").partition(f"\n### {section}\n")[2].partition("\n\nAn entry")[0]
    listed = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page.partition("\n### ")[0], re.MULTILINE)
    assert {key: yaml.safe_load(default) for key, default in listed} == asdict(getattr(Recipe(), section))


def test_every_recipe_is_listed() -> None:
    page = (DOCS / "training.md").read_text("utf-8")
    assert [path.stem for path in RECIPES.glob("*.yaml") if f"`{path.stem}`" not in page] == []


def test_every_reader_is_listed() -> None:
    page = (DOCS / "readers.md").read_text("utf-8")
    assert [name for name in READERS if f"`{name}`" not in page] == []
