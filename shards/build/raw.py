"""A raw set as a recipe names it: list `shards`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.build.run import build
from shards.build.settings import BuildSettings
from shards.errors import BadInput
from shards.info import DATASET_FILE, DatasetInfo, read_info
from shards.readers import find_reader
from shards.readers.base import Reader, ReaderOptions
from shards.verify import verify


@dataclass(kw_only=True)
class RawSet:
    """One entry of `shards`: a set to build, to translate, or both. Unnamed options are those of the reader."""

    out: str = ""
    """Dataset folder to build."""
    reader: str = ""
    """Name of the reader; empty where `out` is there already and is only translated."""
    input: str = ""
    """File or folder of the raw set."""
    images: str = ""
    """Folder that the images' paths start from."""
    annotations: str = ""
    """File of the answers, where they stand apart."""
    split: str = ""
    """Part of the raw set."""
    lang: str = ""
    """Language, where it is not that of the published set."""
    limit: int | None = None
    """Stop after so many rows."""
    merge: bool = True
    """All questions about an image in one sample."""
    format_prompts: bool = False
    """End the questions with LLaVA 1.5's response-format prompts."""
    follow_links: bool = False
    """Images may be links that lead out of `images`."""
    balance: bool = False
    """Thin turns until the question alone says nothing of the answer."""
    name: str = ""
    """Stem of the shard files; READER-SPLIT if empty."""
    samples_per_shard: int = 500
    """Most samples in a tar."""
    max_rejected: float = 0.01
    """Largest share of rows that may be rejected, 0 to 1."""
    translated: str = ""
    """Folder of its translation by section `translate`; empty keeps its language."""

    def __post_init__(self) -> None:
        if not self.out:
            raise BadInput("shards: an entry without out; name the dataset folder to build")
        if not self.reader and not self.translated:
            raise BadInput(f"shards: nothing to do for {self.out}; name its reader, or the folder of its translation")
        if self.translated == self.out:
            raise BadInput(f"shards: {self.out} cannot be its own translation; name another folder")

    @property
    def last(self) -> str:
        """Folder of what becomes of it."""
        return self.translated or self.out

    def options(self) -> tuple[Reader, ReaderOptions]:
        """Its reader and what that is asked; BadInput for an unknown reader."""
        reader = find_reader(self.reader)
        input, images, annotations = (Path(p) if p else None for p in (self.input, self.images, self.annotations))
        return reader, ReaderOptions(
            input=input, images=images, annotations=annotations, split=self.split or reader.split,
            lang=self.lang or None, limit=self.limit, merge=self.merge, format_prompts=self.format_prompts,
            follow_links=self.follow_links, balance=self.balance,
        )  # fmt: skip

    def build(self, progress: Callable[[int], None] | None = None) -> DatasetInfo:
        """Write `out`, see `shards.build.build`."""
        settings = BuildSettings(max_rejected=self.max_rejected)
        return build(*self.options(), Path(self.out), self.name or None, self.samples_per_shard, progress, settings)

    def stands(self) -> bool:
        """Whether `out` is whole and was read as this entry says."""
        if not (Path(self.out) / DATASET_FILE).exists():
            return False
        reader, options = self.options()
        return read_info(Path(self.out)).reader == {"name": reader.name, **options.to_json()} and not verify(
            Path(self.out)
        )


def check_sets(sets: Sequence[RawSet]) -> None:
    """BadInput where two entries of a recipe would write the same folder."""
    written = [folder for each in sets for folder in ([each.out] if each.reader else []) + [each.translated] if folder]
    for folder in written:
        if written.count(folder) > 1:
            raise BadInput(f"shards: {folder} is written by two entries; give each a folder of its own")
