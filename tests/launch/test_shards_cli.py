"""`vlm shards` from the command line: JSON alone on the output, and one line for what a user gets wrong."""

import json
import os
import threading
from pathlib import Path

import pytest

from launch.cli import run
from launch.progress import Progress

ROW = {"id": "1", "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW | {"id": str(i)}) + "\n" for i in range(20)))
    return path


def build(rows: Path, out: Path, *more: str) -> int:
    return run(["shards", "build", "--reader", "llava", "--input", str(rows), "--out", str(out), *more])


def refused(capsys: pytest.CaptureFixture[str], out: Path) -> str:
    said = capsys.readouterr()
    assert said.out == ""
    assert not os.path.lexists(out)
    (line,) = said.err.splitlines()
    return line


def test_json_is_all_that_is_printed_however_long_it_takes(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress.__init__, "__defaults__", (0,))
    out = str(tmp_path / "out")
    for command in (["build", "--reader", "llava", "--input", str(rows), "--out", out], ["verify", out], ["stat", out]):
        assert run(["shards", *command, "--json"]) == 0
        said = capsys.readouterr()
        assert isinstance(json.loads(said.out), dict)
        assert "20 samples" in said.err


def test_a_pipe_is_refused_before_it_is_read(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    read_end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.write(write_end := os.open(pipe, os.O_WRONLY), rows.read_bytes())
    thread = threading.Timer(20, os.close, (write_end,))  # so that a reader that waits for its end fails, not hangs
    thread.start()
    try:
        assert build(pipe, tmp_path / "out") == 2
        assert f"--input {pipe}: not a plain file" in refused(capsys, tmp_path / "out")
    finally:
        thread.cancel()
        os.close(read_end)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--input", "/dev/zero"], "--input /dev/zero: not a plain file"),
        (["--input", "x" * 300], "x: cannot be read (File name too long)"),
        (["--images", "nowhere"], "--images nowhere: cannot be read (No such file"),
        (["--follow-links"], "--images; give both"),
        (["--quality", "40"], "--reencode or --max-side"),
        (["--split", "тест"], "--split 'тест'"),
        (["--split", "x" * 65], "--split 'xxx"),
        (["--limit", "0"], "--limit is 0"),
        (["--samples-per-shard", "0"], "--samples-per-shard is 0"),
        (["--workers", "0"], "--workers is 0"),
    ],
)
def test_wrong_options_are_named(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert build(rows, tmp_path / "out", *options) == 2
    assert says in refused(capsys, tmp_path / "out")


def test_name_that_is_not_utf8(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.rename(named := tmp_path / "\udcff.jsonl")
    assert build(named, tmp_path / "out") == 2
    assert "its name is not UTF-8; rename it" in refused(capsys, tmp_path / "out")


@pytest.mark.parametrize("html", ["nowhere/page.html", ".", "/proc/page.html"])
def test_page_that_cannot_be_written(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, html: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build(rows, tmp_path / "out") == 0
    capsys.readouterr()
    assert run(["shards", "stat", "out", "--html", html]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert html in said.err and said.err.count("\n") == 1
