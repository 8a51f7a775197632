"""Folders of Hugging Face `datasets`: what `save_to_disk` writes, and the Parquet files of a downloaded repository."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import BadInput
from shards.files import read_json
from shards.readers.base import Draft, Reader, ReaderOptions
from shards.readers.conversations import Conversations
from shards.readers.dialogue import as_object
from shards.readers.hf_forms import Form, find_form
from shards.readers.images import ImageFolder
from shards.readers.tables import Row, arrow_columns, arrow_rows, parquet_columns, parquet_rows
from shards.sample import Sample

_NAME = re.compile(r"[^/\0\ud800-\udfff]+")
_PART = re.compile(r"(?P<split>.+?)(-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?)?\.parquet")


def _read(options: ReaderOptions) -> Iterator[Draft]:
    if options.input is None or not options.input.is_dir():
        raise BadInput("reader hf-datasets: give the folder of the dataset with --input")
    if options.lang is None:
        raise BadInput("reader hf-datasets: the folder does not say its language; give it with --lang")
    conversations = Conversations.of("hf-datasets", options.lang, options)
    folder = None if options.images is None else ImageFolder.of(options)
    number, form = 0, None
    for file in _files(options.input, options.split):
        arrow = file.suffix == ".arrow"
        found = find_form(arrow_columns(file) if arrow else parquet_columns(file), str(file))
        if form not in (None, found):
            raise BadInput(f"{file}: its columns are not those of the files before it")
        form = found
        for place, row in arrow_rows(file) if arrow else parquet_rows(file):
            yield Draft(place, partial(_sample, conversations, folder, form, number, row))
            number += 1


def _sample(conversations: Conversations, folder: ImageFolder | None, form: Form, number: int, row: Row) -> Sample:
    return form.make(conversations, number, as_object(row()), folder)


def _files(root: Path, split: str) -> list[Path]:
    """The files of the split in their order."""
    if (root / "dataset_dict.json").exists():
        splits = _list(root / "dataset_dict.json", "splits")
        if split not in splits:
            raise BadInput(f"{root}: no split {split!r:.50}; choose --split from {', '.join(map(str, splits)):.200}")
        root = _below(root, split)
    if (root / "state.json").exists():
        return _arrow_files(root)
    return _parquet_files(root, split)


def _arrow_files(root: Path) -> list[Path]:
    state = root / "state.json"
    files = _list(state, "_data_files")
    for entry in files:
        if not isinstance(entry, dict) or set(entry) != {"filename"}:
            raise BadInput(f"{state}: a file is more than its name there; save the dataset again with a newer datasets")
    return [_below(root, entry["filename"]) for entry in files]


def _parquet_files(root: Path, split: str) -> list[Path]:
    """`SPLIT-00000-of-00002.parquet`, … of the folder or of its `data`, or all Parquet files of a folder SPLIT."""
    places = (root, root / "data")
    others: set[str] = set()
    for place in places:
        parts = {file: _PART.fullmatch(file.name) for file in sorted(place.glob("*.parquet"))}
        mine = {file: part for file, part in parts.items() if part and part["split"] == split}
        if mine:
            _check_whole(place, [part for part in mine.values() if part])
            return list(mine)
        others |= {part["split"] for part in parts.values() if part}
    for place in places:
        if files := sorted(_below(place, split).glob("*.parquet")):
            return files
    there = f"; there are the splits {', '.join(sorted(others)):.200}" if others else ""
    raise BadInput(f"{root}: no dataset_dict.json, state.json or Parquet files of split {split!r:.50}{there}")


def _check_whole(place: Path, parts: list[re.Match[str]]) -> None:
    """BadInput unless all parts of one download are there."""
    wanted = {(n, part["count"]) for part in parts if part["count"] for n in range(int(part["count"]))}
    found = [(int(part["number"]), part["count"]) for part in parts if part["count"]]
    if len(found) != len(wanted) or set(found) != wanted:
        raise BadInput(
            f"{place}: {len(found)} of {len(wanted)} Parquet parts of the split are there; download it again"
        )


def _list(path: Path, name: str) -> list[Any]:
    obj = read_json(path)
    if not isinstance(obj, dict) or not isinstance(obj.get(name), list):
        raise BadInput(f"{path}: a list {name!r} is wanted")
    return list(obj[name])


def _below(folder: Path, name: Any) -> Path:
    """A file or folder that lies in `folder`; BadInput for a name that leads anywhere else."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (".", ".."):
        raise BadInput(f"{folder}: {name!r:.200} is no name of a file in it")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{path}: a link out of its folder; copy what it leads to")
    return path


HF_DATASETS = Reader(
    "hf-datasets",
    "a dataset saved by Hugging Face datasets",
    "as stated by its owner",
    ("any",),
    _read,
    "--input: a folder of save_to_disk or of SPLIT-*.parquet; --images: the folder of images named by path",
    ("images", "lang", "follow_links"),
)
