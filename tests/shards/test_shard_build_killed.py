"""A build killed at any moment and run again ends in the same bytes as one that nothing disturbed."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from shards.build import BuildSettings, build
from shards.readers import READERS, ReaderOptions
from shards.sample import Sample

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = 20
SEED = 3

# What the interpreter tells of; writes, syncs and statements of SQL are counted by wrappers.
_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect"}


def build_into(raw: Path, out: Path) -> None:
    options = ReaderOptions(input=raw / "in.jsonl", images=raw / "images")
    settings = BuildSettings(max_rejected=0.5, workers=2)
    build(READERS["jsonl"], options, out, "set", 5, settings=settings)


class Clock:
    """Counts the moments at which a build touches the disk; the process dies at number `last`."""

    def __init__(self, last: int | None = None) -> None:
        self.now, self.last = 0, last

    def tick(self) -> None:
        self.now += 1
        if self.now == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        sys.addaudithook(lambda event, _: self.tick() if event in _CHANGES else None)
        os.fsync = lambda fd: self.tick()
        sqlite3.connect = self.connect  # type: ignore[assignment]
        for module in ("shards.tar", "shards.files"):
            sys.modules[module].open = self.open  # type: ignore[attr-defined]

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        tick = self.tick

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                tick()
                cursor = super().execute(*args)
                tick()
                return cursor

        return Connection(*args, **options)

    def open(self, *args: Any, **options: Any) -> Any:
        file = open(*args, **options)  # noqa: SIM115  closed by the caller
        return Torn(file, self) if args[1:] == ("xb",) else file


class Torn:
    """A file of which half a write may reach the disk."""

    def __init__(self, file: IO[bytes], clock: Clock) -> None:
        self.file, self.clock = file, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.clock.tick()
        self.file.write(data[half:])


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a forked process that does the work, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def undisturbed(raw: Path, out: Path, count: Path) -> None:
    (clock := Clock()).install()
    build_into(raw, out)
    count.write_text(str(clock.now))


def killed(raw: Path, out: Path, moment: int) -> None:
    Clock(moment).install()
    build_into(raw, out)


def main(folder: Path) -> None:
    """Builds `folder`/whole, then kills builds and finishes them; prints (exit code when killed, when run again)."""
    raw = folder / "raw"
    assert in_child(partial(undisturbed, raw, folder / "whole", folder / "count")) == 0
    count = int((folder / "count").read_text())
    for moment in sorted(random.Random(SEED).sample(range(1, count + 1), MOMENTS)):
        out = folder / f"killed-{moment:04d}"
        codes = in_child(partial(killed, raw, out, moment)), in_child(partial(build_into, raw, out))
        print(json.dumps([out.name, *codes]))


def write_raw(folder: Path, make_sample: Callable[..., Sample], make_png: Callable[..., bytes]) -> None:
    (folder / "images").mkdir(parents=True)
    for i in range(4):
        (folder / "images" / f"{i}.png").write_bytes(make_png((i, 0, 0)))
    rows = []
    for i in range(30):
        sample = make_sample(i)
        rows.append(json.dumps({"key": sample.key, **sample.to_json(), "image": f"{i % 6}.png"}))
    rows[17] = rows[3]
    (folder / "in.jsonl").write_text("\n".join([*rows, "{"]))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_at_any_moment(
    tmp_path: Path, make_sample: Callable[..., Sample], make_png: Callable[..., bytes]
) -> None:
    write_raw(tmp_path / "raw", make_sample, make_png)
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = contents(tmp_path / "whole")
    assert {"rejected.jsonl", "duplicates.jsonl", "set-000003.tar", "dataset.json"} < set(whole)
    moments = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(moments) == MOMENTS
    for name, code_killed, code_again in moments:
        assert (code_killed, code_again) == (-signal.SIGKILL, 0), (name, done.stderr)
        assert contents(tmp_path / name) == whole, name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
