"""A dataset whose digests all agree and whose tar is still not one of ours."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import read_json, write_json
from shards.info import FileInfo, file_info, read_info
from shards.verify import verify

MakeDataset = Callable[..., Path]


def reseal(folder: Path, tar: bytes | None = None) -> None:
    """Make every digest of a one-shard dataset fit the bytes that lie there."""
    path, index_path = folder / "set-000000.tar", folder / "set-000000.index.json"
    if tar is not None:
        path.write_bytes(tar)
    digest = file_info(path)
    write_json(index_path, {**read_json(index_path), "bytes": digest.bytes, "sha256": digest.sha256})
    reseal_index(folder, digest)


def reseal_index(folder: Path, tar: FileInfo | None = None) -> None:
    """Make dataset.json fit the index that lies there."""
    info = read_info(folder)
    shard = replace(info.shards[0], index=file_info(folder / "set-000000.index.json"), tar=tar or info.shards[0].tar)
    write_json(folder / "dataset.json", replace(info, shards=(shard,)).to_json())


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.type = len(data), kind
    header.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return header.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


@pytest.mark.parametrize(
    "extra",
    [
        member("s-0000.pkl", b"cos\nsystem\n(S'x'\ntR."),
        member("../../x", b"data"),
        member("s-0000.json", b"{}"),
        member("link", kind=tarfile.SYMTYPE),
        member("hard", kind=tarfile.LNKTYPE),
        member("device", kind=tarfile.CHRTYPE),
        member("pax", b"1000", kind=tarfile.XHDTYPE),
    ],
)
def test_foreign_members_are_named(make_dataset: MakeDataset, extra: bytes) -> None:
    folder = make_dataset(1)
    tar = (folder / "set-000000.tar").read_bytes().rstrip(b"\0")
    tar += b"\0" * (-len(tar) % 512)
    reseal(folder, tar + extra + b"\0" * 1024)
    assert [problem.file for problem in verify(folder)] == ["set-000000.tar"]


def test_an_appended_tar_is_found_though_every_digest_agrees(make_dataset: MakeDataset) -> None:
    folder = make_dataset(1)
    tar = (folder / "set-000000.tar").read_bytes()
    reseal(folder, tar + tar)
    assert [problem.what for problem in verify(folder)] == ["bytes after its end: something was appended"]


def test_negative_size_ends_the_walk(make_dataset: MakeDataset) -> None:
    folder = make_dataset(1)
    tar = bytearray((folder / "set-000000.tar").read_bytes())
    header = tarfile.TarInfo("loop")
    header.size = -1536
    tar[-1024:-512] = header.tobuf(tarfile.GNU_FORMAT)
    at = len(bytes(tar[:-1024]).rstrip(b"\0"))
    at += -at % 512
    reseal(folder, bytes(tar[:at]) + bytes(tar[-1024:-512]) + b"\0" * 1024)
    assert "negative size" in verify(folder)[0].what


def test_sealed_rubbish_json_is_named_by_key(make_dataset: MakeDataset) -> None:
    folder = make_dataset(1)
    path = folder / "set-000000.tar"
    offset, size = ShardDataset.open(folder).entries[0].members["json"]
    for rubbish in (b"[" * size, b"\xff" * size, b'{"id": "\\u0000"'.ljust(size - 1) + b"}"):
        tar = path.read_bytes()
        reseal(folder, tar[:offset] + rubbish + tar[offset + size :])
        with pytest.raises(BadInput, match="s-0000"):
            ShardDataset.open(folder).read(0)
        assert [problem.file for problem in verify(folder)] == [path.name]


@pytest.mark.parametrize(
    "change",
    [
        {"members": {"json": [10**15, 5]}, "image_size": None},
        {"members": {"json": [0, 5]}, "image_size": None},
        {"members": {"json": [512, -1]}, "image_size": None},
        {"members": {"json": [512, 10**10]}, "image_size": None},
        {"members": {"json": [512, 1e400]}, "image_size": None},
        {"members": {"json": [512]}, "image_size": None},
        {"members": {"pkl": [512, 5]}, "image_size": None},
        {"members": {"json": [512, 5], "pkl": [512, 5]}},
        {"members": []},
        {"members": {"json": [512, 5], "png": [512, 5], "jpg": [512, 5]}, "image_size": [1, 1]},
        {"image_size": None},
        {"image_size": []},
        {"key": None, "questions": "many"},
        {"key": "a\nb"},
        {"key": "k" * 200},
    ],
)
def test_rubbish_index_is_bad_input(make_dataset: MakeDataset, change: dict[str, object]) -> None:
    folder = make_dataset(1)
    path = folder / "set-000000.index.json"
    index = read_json(path)
    index["samples"][0] |= change
    path.write_text(json.dumps(index).replace("Infinity", "1e400"))
    reseal_index(folder)
    with pytest.raises(BadInput, match="not a shard index"):
        ShardDataset.open(folder)
    assert [problem.file for problem in verify(folder)] == [path.name]


def test_members_far_apart_are_not_read_at_once(make_dataset: MakeDataset) -> None:
    folder = make_dataset(1)
    path = folder / "set-000000.tar"
    with open(path, "r+b") as handle:  # a sparse tar of 100 MB
        handle.truncate(100_000_000)
    index_path = folder / "set-000000.index.json"
    index = read_json(index_path)
    index["samples"][0]["members"]["png"][0] = 99_000_000
    write_json(index_path, index)
    reseal(folder)
    with pytest.raises(BadInput, match="lie apart"):
        ShardDataset.open(folder)


def test_gnu_tar_sees_the_same_names(make_dataset: MakeDataset) -> None:
    data = (make_dataset(2) / "set-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    assert [item.name for item in members] == ["s-0000.png", "s-0000.json", "s-0001.png", "s-0001.json"]
    assert {(item.mtime, item.uid, item.gid, item.mode) for item in members} == {(0, 0, 0, 0o644)}
