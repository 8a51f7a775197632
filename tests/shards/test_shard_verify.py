"""Every damage to a dataset folder is found and named, the same whatever the number of workers."""

import io
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from shards.build import BuildSettings, build
from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import read_json, write_json
from shards.info import DatasetInfo, file_info, read_info
from shards.readers import Draft, Reader, ReaderOptions
from shards.sample import Sample
from shards.tar import ShardWriter
from shards.verify import verify
from shards.verify.shard import Problem, check_shard

MakeSample = Callable[..., Sample]


def refuse() -> Sample:
    raise BadInput("a row of the test")


def build_with_rejects(samples: Sequence[Sample], out: Path, per_shard: int = 2) -> Path:
    """A folder with every kind of file that a build writes."""

    def read(options: ReaderOptions) -> Iterator[Draft]:
        yield from (Draft(f"row {number}", partial(replace, sample)) for number, sample in enumerate(samples))
        yield Draft("the last row", refuse)

    reader = Reader("list", "test", "CC0", ("en",), read, "nothing")
    build(reader, ReaderOptions(), out, "set", per_shard, settings=BuildSettings(max_rejected=1))
    return out


def write_dataset(shards: Sequence[Sequence[Sample]], out: Path) -> Path:
    """A dataset that no build would write."""
    out.mkdir()
    infos = []
    for number, samples in enumerate(shards):
        with ShardWriter(out, f"set-{number:06d}") as writer:
            for sample in samples:
                writer.add(sample)
            infos.append(writer.finish())
    every = [sample for samples in shards for sample in samples]
    info = DatasetInfo(
        "set", "en", "train", "test", "CC0", len(every), sum(len(sample.questions) for sample in every),
        sum(sample.image is not None for sample in every), tuple(infos),
    )  # fmt: skip
    write_json(out / "dataset.json", info.to_json())
    return out


def reseal(folder: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a tar and make every digest agree."""
    info = read_info(folder)
    shard = info.shards[number]
    tar_path, index_path = folder / shard.tar.file, folder / shard.index.file
    tar_path.write_bytes(change(tar_path.read_bytes()))
    tar = file_info(tar_path)
    write_json(index_path, {**read_json(index_path), "bytes": tar.bytes, "sha256": tar.sha256})
    shards = list(info.shards)
    shards[number] = replace(shard, tar=tar, index=file_info(index_path))
    write_json(folder / "dataset.json", replace(info, shards=tuple(shards)).to_json())


def swap(old: bytes, new: bytes, data: bytes) -> bytes:
    return data.replace(old, new)


def noise(seed: int, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3)).save(
        buffer, "PNG", compress_level=0
    )
    return buffer.getvalue()


def test_any_flipped_bit_in_any_file_is_found_and_named(make_sample: MakeSample, tmp_path: Path) -> None:
    folder = build_with_rejects([make_sample(i, with_image=i != 1) for i in range(3)], tmp_path / "data")
    assert verify(folder) == []
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["dataset.json", "rejected.jsonl"] + [
        f"set-00000{i}.{ext}" for i in range(2) for ext in ("index.json", "tar")
    ]
    rng = random.Random(1)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for _ in range(80):
            position, bit = rng.randrange(len(whole)), rng.randrange(8)
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            assert path.name in {problem.file for problem in verify(folder)}, (position, bit)
        path.write_bytes(whole)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\n", lambda data: data[::-1], None])
def test_other_files_of_the_folder_are_checked(
    make_sample: MakeSample, tmp_path: Path, change: Callable[[bytes], bytes] | None
) -> None:
    folder = build_with_rejects([make_sample(0)], tmp_path / "data")
    path = folder / "rejected.jsonl"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    assert [problem.file for problem in verify(folder)] == ["rejected.jsonl"]


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\n", lambda data: b" " + data])
def test_dataset_json_that_says_the_same_in_other_bytes(
    make_sample: MakeSample, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    folder = build_with_rejects([make_sample(0)], tmp_path / "data")
    path = folder / "dataset.json"
    path.write_bytes(change(path.read_bytes()))
    assert [problem.file for problem in verify(folder)] == ["dataset.json"]


def test_workers_change_nothing(make_sample: MakeSample, tmp_path: Path) -> None:
    samples = [[make_sample(3 * shard + i) for i in range(3)] for shard in range(7)]
    folder = write_dataset(samples, tmp_path / "data")
    seen: list[int] = []
    assert verify(folder, seen.append, workers=2) == []
    assert seen == [3, 6, 9, 12, 15, 18, 21]
    seen.clear()
    assert verify(folder, seen.append, workers=1) == []
    assert seen == list(range(1, 22))

    shutil.copy(folder / "set-000001.tar", folder / "other.tar")
    shutil.move(folder / "set-000002.tar", folder / "set-000003.tar")
    (folder / "set-000004.index.json").write_text("{}")
    reseal(folder, 5, partial(swap, b'"lang": "en"', b'"lang": "e!"'))
    alone = verify(folder, workers=1)
    assert list(dict.fromkeys(problem.file for problem in alone)) == [
        "other.tar", "set-000002.tar", "set-000003.tar", "set-000004.index.json", "set-000005.tar"
    ]  # fmt: skip
    assert verify(folder, workers=2) == alone
    with pytest.raises(BadInput, match="workers is 0"):
        verify(folder, workers=0)


def test_keys_and_question_ids_are_unique_over_all_shards(make_sample: MakeSample, tmp_path: Path) -> None:
    first, second, third = ([make_sample(10 * shard + i) for i in range(3)] for shard in range(3))
    second[1] = replace(second[1], key=first[2].key)
    third[0] = replace(third[0], questions=first[0].questions)
    folder = write_dataset([first, second, third], tmp_path / "data")
    assert verify(folder) == [
        Problem("set-000001.tar", "the key 's-0002' is taken already by a sample of set-000000.tar"),
        Problem(
            "set-000002.tar", "sample 's-0020': its question_id 'q-0' is taken already by a sample of set-000000.tar"
        ),
    ]


def test_a_shard_copied_under_another_name_is_found(make_sample: MakeSample, tmp_path: Path) -> None:
    shard = [make_sample(i) for i in range(3)]
    folder = write_dataset([shard, shard], tmp_path / "data")
    assert {problem.file for problem in verify(folder)} == {"set-000001.tar"}
    assert len(verify(folder)) == 6


@pytest.mark.parametrize("name", ["samples", "questions", "images"])
def test_counts_of_the_description_are_checked(make_sample: MakeSample, tmp_path: Path, name: str) -> None:
    folder = write_dataset([[make_sample(0), make_sample(1, with_image=False)]], tmp_path / "data")
    info = read_info(folder)
    write_json(folder / "dataset.json", replace(info, **{name: 7}).to_json())
    (problem,) = verify(folder)
    assert problem.file == "dataset.json" and f"{name} is 7" in problem.what


def test_reading_crosses_its_buffer(make_sample: MakeSample, tmp_path: Path) -> None:
    """Samples smaller and larger than a buffer, each with a long key."""
    sizes = [(1000, 1000), (300, 700), (1400, 1100), (10, 10), (900, 900)]
    # a key over 100 bytes has a member of its own in the tar, before the sample's
    keys = ["k" * 120 + str(i) for i in range(len(sizes))]
    samples = [replace(make_sample(i), key=keys[i], image=noise(i, *size)) for i, size in enumerate(sizes)]
    folder = write_dataset([samples], tmp_path / "data")
    assert verify(folder) == []
    for sample in (samples[2], samples[4]):
        image = sample.image or b""
        middle = len(image) // 2
        other = image[:middle] + bytes([image[middle] ^ 1]) + image[middle + 1 :]
        reseal(folder, 0, partial(swap, image, other))
        (problem,) = verify(folder)
        assert f"{sample.key!r}: image is damaged" in problem.what
        reseal(folder, 0, partial(swap, other, image))


def test_memory_does_not_grow_with_the_shard(make_sample: MakeSample, tmp_path: Path) -> None:
    image = noise(1, 1000, 1000)
    folder = write_dataset([[replace(make_sample(i), image=image) for i in range(14)]], tmp_path / "data")
    (shard,) = read_info(folder).shards
    tracemalloc.start()
    assert check_shard(folder, shard).problems == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 25_000_000 < shard.tar.bytes


def test_many_bad_samples_are_counted(make_sample: MakeSample, tmp_path: Path) -> None:
    folder = write_dataset([[make_sample(i, with_image=False) for i in range(120)]], tmp_path / "data")
    reseal(folder, 0, partial(swap, b'"lang": "en"', b'"lang": "e!"'))
    problems = verify(folder)
    assert len(problems) == 101
    assert problems[-1].what == "and 20 more problems"


def test_decode_looks_inside_the_images(make_sample: MakeSample, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 99, 199)).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    table = jpeg.index(b"\xff\xc4") + 5
    broken = jpeg[:table] + b"\xff" + jpeg[table + 1 :]
    samples = [replace(make_sample(i), image=data, image_ext="jpg") for i, data in enumerate((jpeg, broken))]
    folder = write_dataset([samples], tmp_path / "data")
    assert verify(folder) == []
    (problem,) = verify(folder, decode=True)
    assert problem.file == "set-000000.tar" and "'s-0001': image cannot be decoded" in problem.what


URLS = [
    "pipe:touch {}",
    "file:{}",
    "file://{}",
    "http://localhost:9/{}",
    "https://h/{}",
    "s3://b/{}",
    "gs://{}",
    "PIPE:touch {}",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_no_dataset_folder(url: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for use in (ShardDataset.open, ShardDataset, verify):
        for folder in (url.format(canary), Path(url.format(canary))):
            with pytest.raises(BadInput, match=r"a URL; give the path of a dataset folder") as error:
                use(folder)
            assert "\n" not in str(error.value)
    assert not canary.exists()


def test_webdataset_in_our_process_runs_no_command(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(ValueError, match="cannot open pipe"):
        list(webdataset.WebDataset(f"pipe:touch {canary}", shardshuffle=False))
    assert not canary.exists()
