"""Build, read back, and find every kind of damage."""

import multiprocessing
import os
import pickle
import random
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from shards.dataset import ShardDataset
from shards.entries import Entries
from shards.errors import BadInput
from shards.files import read_json, write_json
from shards.index import IndexEntry, ShardIndex
from shards.info import read_info
from shards.readers import Reader
from shards.sample import IMAGE_EXTENSIONS, Sample
from shards.stat import stat
from shards.verify import verify

MakeSample = Callable[..., Sample]
MakeDataset = Callable[..., Path]
MakeReader = Callable[[Sequence[Sample]], Reader]


def test_round_trip(make_sample: MakeSample, make_dataset: MakeDataset) -> None:
    long_key = replace(make_sample(9, with_image=False), key="k" * 128)
    samples = [make_sample(0), make_sample(1, with_image=False), long_key, make_sample(2), make_sample(3)]
    dataset = ShardDataset.open(folder := make_dataset(samples))
    assert list(dataset) == samples
    assert dataset.read(3) == samples[3]
    assert dataset.keys == [sample.key for sample in samples]
    assert len(dataset) == 5
    assert dataset.shard_sizes == [2, 2, 1]
    assert [entry.image_size for entry in dataset.entries] == [(6, 4), None, None, (6, 4), (6, 4)]
    assert (dataset.info.samples, dataset.info.questions, dataset.info.images) == (5, 5, 3)
    assert verify(folder) == []
    with pytest.raises(IndexError):
        dataset.read(5)


def test_plain_webdataset_reads_the_same(make_sample: MakeSample, make_dataset: MakeDataset) -> None:
    samples = [make_sample(i, with_image=i != 2) for i in range(5)]
    folder = make_dataset([*samples, replace(make_sample(5), key="k" * 128)])
    tars = sorted(map(str, folder.glob("*.tar")))
    read = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [item["__key__"] for item in read] == ShardDataset.open(folder).keys
    assert [item["json"] for item in read[:5]] == [sample.to_json() for sample in samples]
    raw = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [item.get("png") for item in raw[:5]] == [sample.image for sample in samples]


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no dataset\.json in .*: build it with `vlm shards build`"):
        ShardDataset.open(tmp_path)
    assert [problem.file for problem in verify(tmp_path)] == ["dataset.json"]


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


@pytest.mark.parametrize("name", ["set-000000.tar", "set-000000.index.json"])
def test_every_flipped_bit_is_found_and_named(make_dataset: MakeDataset, name: str) -> None:
    path = (folder := make_dataset(2)) / name
    whole = path.read_bytes()
    rng = random.Random(1)
    for start in range(0, len(whole), 64):  # every region: headers, padding, image, JSON, end blocks
        position = min(start + rng.randrange(64), len(whole) - 1)
        path.write_bytes(flipped(whole, position, rng.randrange(8)))
        assert name in [problem.file for problem in verify(folder)], f"byte {position}"


def test_harmless_looking_change_of_an_index_is_found(make_dataset: MakeDataset) -> None:
    path = (folder := make_dataset()) / "set-000001.index.json"
    path.write_text(path.read_text().replace("\n", " ", 1))
    assert [problem.file for problem in verify(folder)] == [path.name]
    with pytest.raises(BadInput, match="differs from its digest"):
        ShardDataset.open(folder)


def test_flipped_header_is_found_when_read(make_dataset: MakeDataset) -> None:
    dataset = ShardDataset.open(folder := make_dataset(2))
    path = folder / "set-000000.tar"
    whole = path.read_bytes()
    offsets = [offset for offset, _ in dataset.entries[1].members.values()]
    for offset in offsets:
        for position in range(offset - 512, offset, 7):
            path.write_bytes(flipped(whole, position, position % 8))
            with pytest.raises(BadInput, match=r"set-000000\.tar.*s-0001"):
                dataset.read(1)
    assert dataset.read(0).key == "s-0000"


def test_swapped_members_are_found_when_read(make_dataset: MakeDataset) -> None:
    dataset = ShardDataset.open(make_dataset(2))
    first, second = dataset.entries
    dataset.entries = Entries()
    dataset.entries.extend([replace(second, key="s-0000"), first])
    with pytest.raises(BadInput, match=r"'s-0001\.png' lies where the index has s-0000\.png"):
        dataset.read(0)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def concatenate(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


DAMAGES = [(truncate, "truncated"), (concatenate, "appended"), (Path.unlink, "missing")]


@pytest.mark.parametrize(("damage", "what"), DAMAGES)
@pytest.mark.parametrize("name", ["set-000001.tar", "set-000001.index.json"])
def test_damaged_file_is_named(make_dataset: MakeDataset, damage: Callable[[Path], None], what: str, name: str) -> None:
    damage((folder := make_dataset()) / name)
    problems = verify(folder)
    assert {problem.file for problem in problems} == {name}
    with pytest.raises(BadInput, match=name):
        ShardDataset.open(folder)
    if name.endswith(".tar"):
        assert what in problems[0].what


def test_swapped_shards_are_found(make_dataset: MakeDataset) -> None:
    folder = make_dataset(4)
    first, second = folder / "set-000000.tar", folder / "set-000001.tar"
    shutil.move(first, folder / "x")
    shutil.move(second, first)
    shutil.move(folder / "x", second)
    assert {problem.file for problem in verify(folder)} == {first.name, second.name}


def test_stray_and_unfinished_are_named(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    shutil.copy(folder / "set-000000.tar", folder / "set-000009.tar")
    (folder / ".unfinished").touch()
    assert {problem.file for problem in verify(folder)} == {"set-000009.tar", ".unfinished"}


@pytest.mark.parametrize("name", ["../set-000000.tar", "/etc/passwd", "pipe:rm x", "http://host/a.tar", ""])
def test_dataset_json_cannot_name_files_elsewhere(make_dataset: MakeDataset, name: str) -> None:
    path = (folder := make_dataset()) / "dataset.json"
    text = path.read_text().replace('"file": "set-000000.tar"', f'"file": "{name}"')
    path.write_text(text)
    with pytest.raises(BadInput, match="not plain"):
        ShardDataset.open(folder)


def test_wrong_count_in_dataset_json(make_dataset: MakeDataset) -> None:
    path = (folder := make_dataset()) / "dataset.json"
    write_json(path, replace(read_info(folder), questions=6).to_json())
    assert [(problem.file, problem.what) for problem in verify(folder)] == [
        ("dataset.json", "questions is 6 and the shards hold 5")
    ]


def test_opening_reads_no_tar(make_dataset: MakeDataset) -> None:
    for path in (folder := make_dataset()).glob("*.tar"):
        path.write_bytes(b"\xff" * path.stat().st_size)
        path.chmod(0)
    assert len(ShardDataset.open(folder)) == 5


def test_threads_forks_and_pickles_read_the_same(make_dataset: MakeDataset) -> None:
    dataset = ShardDataset.open(make_dataset(40, samples_per_shard=1))
    samples = list(dataset)
    assert len([link for link in os.scandir("/proc/self/fd") if ".tar" in os.readlink(link)]) <= 32
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(dataset.read, range(40))) == samples
    assert list(pickle.loads(pickle.dumps(dataset))) == samples
    with multiprocessing.get_context("fork").Pool(2) as workers:
        assert workers.map(dataset.read, range(40)) == samples


def test_progress_and_stat(make_sample: MakeSample, make_dataset: MakeDataset) -> None:
    folder = make_dataset([make_sample(0), make_sample(1, with_image=False), make_sample(2)])
    seen: list[int] = []
    assert verify(folder, seen.append) == []
    assert seen == [1, 2, 3]
    counted = stat(folder)
    assert (counted.samples, counted.images, counted.questions, counted.turns) == (3, 2, 3, 3)
    assert (counted.languages, counted.types, counted.image_sizes) == ({"en": 3}, {"yes/no": 3}, {"6x4": 2})
    assert counted.characters == 3 * len("is there a circle?yes")
    assert counted.to_json()["image_sizes"] == {"6x4": 2}


def test_index_describes_the_tar(make_dataset: MakeDataset) -> None:
    index = read_json(make_dataset(1) / "set-000000.index.json")
    assert list(index) == ["shard", "bytes", "sha256", "samples"]
    entry = index["samples"][0]
    assert (entry["key"], entry["image_size"], entry["questions"]) == ("s-0000", [6, 4], 1)
    assert list(entry["members"]) == ["png", "json"]


SIDE = st.integers(1, 2**31 - 1)
SPAN = st.tuples(st.integers(512, 2**40), st.integers(0, 2**22))
ENTRY = st.builds(
    lambda key, json, image, ext, size, questions: IndexEntry(
        key, {"json": json} if image is None else {ext: image, "json": json}, None if image is None else size, questions
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=128),
    SPAN,
    st.none() | SPAN,
    st.sampled_from(IMAGE_EXTENSIONS),
    st.tuples(SIDE, SIDE),
    st.integers(0, 2**31 - 1),
)


@given(st.lists(ENTRY, max_size=6), st.lists(ENTRY, max_size=6), st.data())
def test_kept_entries_are_those_given(first: list[IndexEntry], second: list[IndexEntry], data: st.DataObject) -> None:
    entries, expected = Entries(), first + second
    entries.extend(first)
    entries.extend(second)
    assert list(entries) == expected and len(entries) == len(expected)
    assert [entries.key(i) for i in range(len(entries))] == [entry.key for entry in expected]
    where = data.draw(st.slices(len(expected)))
    assert entries[where] == expected[where]
    for place in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            entries[place]
    if expected:
        assert entries[-1] == expected[-1]


def test_many_entries_take_little_memory() -> None:
    entries, members = Entries(), {"jpg": (2**33, 2**20), "json": (2**33 + 2**21, 2000)}
    tracemalloc.start()
    entries.extend(IndexEntry(f"llava-train-{i:06d}", members, (640, 480), 3) for i in range(20_000))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept <= 80 * len(entries)


@pytest.mark.parametrize(
    ("name", "value"), [("questions", -1), ("questions", 2**31), ("image_size", [6, 2**31]), ("image_size", [0, 4])]
)
def test_numbers_of_an_index_are_bounded(make_dataset: MakeDataset, name: str, value: object) -> None:
    index = read_json(make_dataset(1) / "set-000000.index.json")
    index["samples"][0][name] = value
    with pytest.raises(BadInput, match=r"at: not a shard index \(.*questions or an image of"):
        ShardIndex.from_json(index, "at")
