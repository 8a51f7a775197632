"""Hostile inputs: each is refused by the command in one clear line, runs no code, takes no more than 200 MB and 2 s.

All cases are run by one process, this file as a script: it has the command imported and forks a child for each.
"""

import importlib
import io
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.files import read_json, write_json
from shards.info import DatasetInfo, FileInfo, file_info, read_info
from shards.sample import ImagePart, Message, Question, Sample, Text
from shards.tar import ShardWriter

MEGABYTES, SECONDS = 200, 2.0

ROOT = Path(__file__).resolve().parents[2]
TAR, INDEX, DATASET = "set-000000.tar", "set-000000.index.json", "dataset.json"

Words = tuple[object, ...]


@dataclass(frozen=True)
class Case:
    """`make` writes the input into an empty folder and returns the words of the command.

    Its one line matches `says`. `code`: 2 for bad input, 1 where `verify` found what is wrong.
    """

    make: Callable[[Path], Words]
    says: str
    code: int


CASES: dict[str, Case] = {}


def case(name: str, says: str, code: int, make: Callable[[Path], Words]) -> None:
    CASES[name] = Case(make, says, code)


# What the cases are made of


def image(format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(buffer, format)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A black PNG, a thousand times smaller than its pixels."""
    size = height * (1 + 3 * width)
    pack = zlib.compressobj(9)
    megabyte = pack.compress(bytes(1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH)
    start, again = megabyte, zlib.compressobj(9, wbits=-15)
    again_bytes = again.compress(bytes(1 << 20)) + again.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    end = rest.compress(bytes(size % (1 << 20))) + rest.flush()
    rows = start + again_bytes * (size // (1 << 20) - 1) + end + struct.pack(">HH", size % 65521, 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND")


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", image("JPEG"))
    return buffer.getvalue()


def pickle_of(folder: Path) -> bytes:
    """Loading it makes the canary."""
    return b"cos\nsystem\n(S'touch " + str(canary(folder)).encode() + b"'\ntR."


def canary(folder: Path) -> Path:
    return folder.parent / "canary"


def dataset(folder: Path) -> DatasetInfo:
    """A dataset of two samples, in one shard."""
    with ShardWriter(folder, "set-000000") as writer:
        for i in range(2):
            messages = (Message("user", (ImagePart(), Text("what is it?"))), Message("assistant", (Text("a square"),)))
            questions = (Question(f"q-{i}", "what is it?", ("a square",)),)
            writer.add(Sample(f"s-{i}", str(i), "test", "en", messages, questions, image(), "png"))
        shard = writer.finish()
    info = DatasetInfo("set", "en", "train", "test", "CC0", 2, 2, 2, (shard,))
    write_json(folder / DATASET, info.to_json())
    return info


def reseal(folder: Path, tar: bytes | None = None, index: Any = None) -> None:
    """Put other bytes or another index there, and make every digest agree."""
    if tar is not None:
        (folder / TAR).write_bytes(tar)
    digest = file_info(folder / TAR)
    index = read_json(folder / INDEX) if index is None else index
    if isinstance(index, bytes):
        (folder / INDEX).write_bytes(index)
    else:
        write_json(folder / INDEX, {**index, "bytes": digest.bytes, "sha256": digest.sha256})
    info = read_info(folder)
    shard = replace(info.shards[0], tar=digest, index=file_info(folder / INDEX))
    write_json(folder / DATASET, replace(info, shards=(shard,)).to_json())


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.type = len(data) if size is None else size, kind
    header.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return header.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


def huge(path: Path, start: bytes, piece: bytes = b"a", end: bytes = b'"') -> Path:
    """A file of 100 MB."""
    with open(path, "wb") as handle:
        handle.write(start)
        for _ in range(100):
            handle.write(piece * (1_000_000 // len(piece)))
        handle.write(end)
    return path


# Datasets


def describe(change: Callable[[Path], object]) -> Callable[[Path], Words]:
    def make(folder: Path) -> Words:
        dataset(folder)
        change(folder)
        return "shards", "stat", folder

    return make


def named(name: str) -> Callable[[Path], None]:
    """dataset.json names another tar."""

    def change(folder: Path) -> None:
        info = read_info(folder)
        shard = replace(info.shards[0], tar=FileInfo(name.format(canary(folder)), 10, "0" * 64))
        write_json(folder / DATASET, replace(info, shards=(shard,)).to_json())

    return change


def checked(change: Callable[[Path], object]) -> Callable[[Path], Words]:
    def make(folder: Path) -> Words:
        dataset(folder)
        change(folder)
        return "shards", "verify", folder

    return make


def appended(extra: Callable[[Path], bytes]) -> Callable[[Path], None]:
    """One more member in the tar."""

    def change(folder: Path) -> None:
        tar = (folder / TAR).read_bytes().rstrip(b"\0")
        reseal(folder, tar + b"\0" * (-len(tar) % 512) + extra(folder) + bytes(1024))

    return change


def other_json(data: bytes) -> Callable[[Path], None]:
    """A sample of these bytes, at the end of the tar."""

    def change(folder: Path) -> None:
        tar = member("s-0.json", data) + bytes(1024)
        entry = {"key": "s-0", "members": {"json": [512, len(data)]}, "image_size": None, "questions": 0}
        info = read_info(folder)
        write_json(folder / DATASET, replace(info, samples=1, shards=(replace(info.shards[0], samples=1),)).to_json())
        reseal(folder, tar, {"shard": TAR, "samples": [entry]})

    return change


def misnamed(folder: Path) -> None:
    """A PNG under the name of a JPEG."""
    tar = bytearray((folder / TAR).read_bytes())
    size = len(image())
    tar[:512] = member("s-0.jpg", size=size)[:512]
    index = read_json(folder / INDEX)
    members = index["samples"][0]["members"]
    index["samples"][0]["members"] = {"jpg": members["png"], "json": members["json"]}
    reseal(folder, bytes(tar), index)


def other_image(data: bytes) -> Callable[[Path], None]:
    """One sample whose image is `data`, said to be 8 by 8."""

    def change(folder: Path) -> None:
        text = (folder / TAR).read_bytes()
        offset, size = read_json(folder / INDEX)["samples"][0]["members"]["json"]
        tar = member("s-0.png", data) + member("s-0.json", text[offset : offset + size]) + bytes(1024)
        start = 1024 + len(data) + -len(data) % 512
        members = {"png": [512, len(data)], "json": [start, size]}
        entry = {"key": "s-0", "members": members, "image_size": [8, 8], "questions": 1}
        info = read_info(folder)
        write_json(folder / DATASET, replace(info, samples=1, shards=(replace(info.shards[0], samples=1),)).to_json())
        reseal(folder, tar, {"shard": TAR, "samples": [entry]})

    return change


for scheme in ("pipe:touch {}", "file:{}", "http://localhost:9/a.tar", "../set-000000.tar", "/etc/passwd"):
    case(f"shard {scheme.split('{')[0]}", "is not plain", 2, describe(named(scheme)))
for scheme in ("pipe:touch {}", "file:{}", "http://localhost:9/data", "s3://bucket/data"):
    case(
        f"folder {scheme.split('{')[0]}", "no dataset.json|a URL", 2,
        lambda folder, scheme=scheme: ("shards", "verify", scheme.format(canary(folder))),
    )  # fmt: skip
    case(
        f"described folder {scheme.split('{')[0]}", "no dataset.json|a URL", 2,
        lambda folder, scheme=scheme: ("shards", "stat", scheme.format(canary(folder))),
    )  # fmt: skip
case("dataset.json of 100 MB", "larger than", 2, describe(lambda folder: huge(folder / DATASET, b'{"name": "')))
case(
    "dataset.json of brackets", "not valid JSON", 2,
    describe(lambda folder: (folder / DATASET).write_bytes(b"[" * 100_000)),
)  # fmt: skip
case(
    "dataset.json of bytes", "not valid JSON", 2,
    describe(lambda folder: (folder / DATASET).write_bytes(b"\x80\x04\0\0" * 99)),
)  # fmt: skip
case("index of brackets", "not valid JSON", 2, describe(lambda folder: reseal(folder, index=b"[" * 10_000)))
case(
    "index of 100 MB", "larger than its tar", 2,
    describe(lambda folder: reseal(folder, index=huge(folder / "x", b'"').read_bytes())),
)  # fmt: skip

FOREIGN = "its members are not those of its index|not a plain file"
case("pickle in a shard", FOREIGN, 1, checked(appended(lambda folder: member("s-2.pkl", pickle_of(folder)))))
case("pyd in a shard", FOREIGN, 1, checked(appended(lambda folder: member("s-2.pyd", pickle_of(folder)))))
case("member above", FOREIGN, 1, checked(appended(lambda folder: member("../canary", b"x"))))
case("absolute member", FOREIGN, 1, checked(appended(lambda folder: member(str(canary(folder)), b"x"))))
case("symlink", FOREIGN, 1, checked(appended(lambda folder: member("s-2.json", kind=tarfile.SYMTYPE))))
case("hard link", FOREIGN, 1, checked(appended(lambda folder: member("s-2.json", kind=tarfile.LNKTYPE))))
case("device", FOREIGN, 1, checked(appended(lambda folder: member("s-2.json", kind=tarfile.CHRTYPE))))
case("duplicate member", FOREIGN, 1, checked(appended(lambda folder: member("s-0.json", b"{}"))))
case("member of 1 TB", FOREIGN, 1, checked(appended(lambda folder: member("s-2.json", size=10**12))))
case("pickle for JSON", "s-0.json: not valid JSON", 1, checked(lambda folder: other_json(pickle_of(folder))(folder)))
case("brackets for JSON", "s-0.json: not valid JSON", 1, checked(other_json(b"[" * 100_000)))
case("NUL in JSON", "s-0.json: not valid JSON", 1, checked(other_json(b'{"id": "\0"}')))
case("image under another name", "is a png and is named .jpg", 1, checked(misnamed))
case("bomb in a shard", "at most 50000000 are taken", 1, checked(other_image(bomb(9_400, 9_500))))
case("half an image in a shard", "truncated", 1, checked(other_image(image()[:-20])))


# Raw sets

DIALOGUE = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a square"}]},
]
ROW: dict[str, Any] = {"key": "a", "id": "1", "source": "test", "lang": "en", "messages": DIALOGUE, "image": "a.jpg"}
LLAVA: dict[str, Any] = {
    "id": "1",
    "image": "a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a square"}],
}


def built(
    row: bytes | dict[str, Any] | Callable[[Path], object], picture: bytes | None = None, reader: str = "jsonl",
    name: str = "rows.jsonl", more: Words = (),
) -> Callable[[Path], Words]:  # fmt: skip
    """A set of one row and one picture, a.jpg."""

    def make(folder: Path) -> Words:
        images, path = folder / "images", folder / name
        images.mkdir()
        (images / "a.jpg").write_bytes(image("JPEG") if picture is None else picture)
        if callable(row):
            row(path)
        else:
            path.write_bytes(row if isinstance(row, bytes) else json.dumps(row).encode())
        return (
            "shards",
            "build",
            "--reader",
            reader,
            "--input",
            path,
            "--images",
            images,
            "--out",
            folder / "out",
            *more,
        )

    return make


def with_text(text: str) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return ROW | {"messages": [{"role": "user", "content": content}, DIALOGUE[1]]}


def said(text: str) -> dict[str, Any]:
    return LLAVA | {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "a square"}]}


def linked(folder: Path) -> Words:
    words = built(ROW)(folder)
    (folder / "images" / "a.jpg").unlink()
    (folder / "images" / "a.jpg").symlink_to("/etc/passwd")
    return words


case("bomb of 700 MB", "1 image, .*at most 50000000 are taken", 2, built(ROW, bomb(9_400, 9_500)))
case("larger bomb", "1 image, .*at most 50000000 are taken", 2, built(ROW, bomb(11_000, 11_000)))
case("half a JPEG", "1 image, .*not a JPEG", 2, built(ROW, image("JPEG")[:-100]))
case("half a PNG", "1 image, .*truncated", 2, built(ROW, image()[:-1]))
case("zip named jpg", "1 image, .*not a JPEG", 2, built(ROW, zip_file()))
case("pickle named jpg", "1 image, .*not a JPEG", 2, lambda folder: built(ROW, pickle_of(folder))(folder))
case(
    "PNG of empty chunks", "1 image, .*parts", 2, built(ROW, image()[:33] + chunk(b"teXt") * 2_000_000 + chunk(b"IEND"))
)
case("JPEG of fill bytes", "1 image, .*not a JPEG", 2, built(ROW, b"\xff\xd8" + b"\xff" * 50_000_000))
case("image above", "1 image-missing, .*lies outside", 2, built(ROW | {"image": "../../etc/passwd"}))
case("absolute image", "1 image-missing, .*lies outside", 2, built(ROW | {"image": "/etc/passwd"}))
case("image of a URL", "1 image-missing", 2, built(ROW | {"image": "http://localhost:9/b.jpg"}))
case("image by a link", "1 image-missing, .*link", 2, linked)
case("NUL in a text", "1 text, .*NUL", 2, built(with_text("a\0b")))
case("unknown role", "1 schema, .*'root' is none of", 2, built(ROW | {"messages": [{**DIALOGUE[0], "role": "root"}]}))
case("row of brackets", "row 1 is not valid JSON", 2, built(b"[" * 100_000 + b"]" * 100_000))
case("line of brackets", "1 schema, .*not valid JSON", 2, built(b'{"a":' + b"[" * 100_000))
case("line of 100 MB", "1 limit, .*line longer", 2, built(lambda path: huge(path, b'{"key": "')))
case("row of 100 MB", "longer|of at most", 2, built(lambda path: huge(path, b'[{"key": "')))
case("row of 100 MB of lists", "longer|of at most", 2, built(lambda path: huge(path, b"[[", b"[],", b"[]]]")))
case("100 MB of rows", "rejected", 2, built(lambda path: huge(path, b"", b"{}\n", b"")))
case(
    "<image> ten thousand times", "1 schema, .*10000 times <image>", 2, built(said("<image>" * 10_000), reader="llava")
)
case("<image> nowhere", "1 schema, .*0 times <image>", 2, built(said("what?"), reader="llava"))
case(
    "Parquet garbage",
    "not a readable Parquet",
    2,
    built(b"PAR1" + b"\xfe" * 5000 + b"PAR1", reader="mmbench", name="a.parquet"),
)

COLUMNS = ("index", "question", "A", "B", "answer", "image")
case(
    "base64 garbage", "1 image, .*base64", 2,
    built("\t".join(COLUMNS).encode() + b"\n1\tq\ta\tb\tA\t" + b"!" * 99 + b"\n", reader="mmbench", name="a.tsv"),
)  # fmt: skip
case(
    "bomb in base64", "1 image, .*at most 50000000", 2,
    built(
        "\t".join(COLUMNS).encode() + b"\n1\tq\ta\tb\tA\t" + b64encode(bomb(9_400, 9_500)) + b"\n",
        reader="mmbench", name="a.tsv",
    ),
)  # fmt: skip


def arrow(file: str, data: bytes) -> Callable[[Path], None]:
    """A folder as `datasets` saves it."""

    def write(folder: Path) -> None:
        folder.mkdir()
        write_json(folder / "state.json", {"_data_files": [{"filename": file}]})
        (folder / "data.arrow").write_bytes(data)

    return write


ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
GARBAGE = b"\xff\xff\xff\xff\x40\x01\0\0" + b"\x10\0\0\0" * 2000 + ARROW_END
for kind, says, write in (
    ("Arrow garbage", "not a readable Arrow stream", arrow("data.arrow", GARBAGE)),
    (
        "Arrow message of 2 GB",
        "not a readable Arrow stream",
        arrow("data.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + ARROW_END),
    ),
    ("Arrow file above", "is no name of a file", arrow("../../../../etc/passwd", b"")),
):
    case(kind, says, 2, built(write, reader="hf-datasets", name="set", more=("--lang", "en")))


# One process for all of them


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case → what came of it."""
    root = tmp_path_factory.mktemp("hostile")
    jobs = {}
    for number, (name, case) in enumerate(CASES.items()):
        folder = root / f"{number:02d}" / "data"
        folder.mkdir(parents=True)
        jobs[name] = [str(word) for word in case.make(folder)]
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, __file__, str(root / "jobs.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: json.loads(line) for name, line in zip(CASES, done.stdout.splitlines(), strict=True)}
    for number, name in enumerate(CASES):
        found[name]["canary"] = (root / f"{number:02d}" / "canary").exists()
        found[name]["output"] = sorted(path.name for path in (root / f"{number:02d}").glob("data/out/*"))
    shutil.rmtree(root)  # some of it is large
    return found


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, results: dict[str, dict[str, Any]]) -> None:
    result, case = results[name], CASES[name]
    assert result["code"] == case.code, result
    (line,) = result["said"].splitlines()
    assert re.search(case.says, line), line
    assert len(line) < 1000
    assert not result["canary"]
    assert not result["output"]
    assert result["megabytes"] <= MEGABYTES
    assert result["seconds"] <= SECONDS


def main(jobs: Path) -> None:
    # What the children import anew would count as their time and memory.
    for name in (
        "pyarrow.parquet",
        "PIL.JpegImagePlugin",
        "PIL.PngImagePlugin",
        "PIL.WebPImagePlugin",
        "shards.stat.run",
    ):
        importlib.import_module(name)
    from launch.cli import run

    for command in ("verify", "stat"):
        run(["shards", command, str(jobs.parent)])
    for words in json.loads(jobs.read_text()).values():
        print(json.dumps(measured(run, words, jobs.with_name("said"))), flush=True)


def measured(run: Callable[[list[str]], int], words: list[str], said: Path) -> dict[str, Any]:
    """Run a command in a child: exit code (negative: the signal that ended it), output, memory and time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        os.write(writer, b"%d" % resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = 99
        try:
            code = run(words)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, used = os.wait4(child, 0)
    kilobytes = used.ru_maxrss - int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": said.read_text(errors="replace")[-5000:],
        "megabytes": kilobytes / 1024,
        "seconds": used.ru_utime + used.ru_stime,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
