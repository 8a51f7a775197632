"""What the documents show works."""

import re
from pathlib import Path
from typing import Any

from PIL import Image

from shards.build import BuildSettings, build
from shards.dataset import ShardDataset
from shards.readers import READERS, ReaderOptions

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


def test_every_reader_is_listed() -> None:
    page = (DOCS / "readers.md").read_text("utf-8")
    assert [name for name in READERS if f"`{name}`" not in page] == []
