"""RUN/jobs/jobs.jsonl: the Slurm jobs of a run, a line when one is submitted and one when it starts."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "jobs.jsonl"
_LINE_BYTES, _FILE_BYTES = 4096, 1 << 20


@dataclass(frozen=True)
class JobRecord:
    """A job of a run. `array` is Slurm's ARRAY_TASK, such as 41_3, or empty; `time` in seconds since the epoch."""

    time: float
    stage: str
    job: str
    array: str
    name: str


def record(run: Path, stage: str, job: str, array: str = "", name: str = "") -> None:
    """Note that `job` works, or will work, on `stage` of `run`."""
    append(run / "jobs" / FILE, asdict(JobRecord(round(time.time(), 3), stage, job, array, name)))


def known(run: Path) -> list[JobRecord]:
    """Every job of a run once, in the order they were first noted; lines that are garbage are left out."""
    found: dict[str, JobRecord] = {}
    for line in read(run / "jobs" / FILE):
        texts = [line.get(name) for name in ("stage", "job", "array", "name")]
        if isinstance(line.get("time"), int | float) and all(isinstance(text, str) for text in texts):
            made = JobRecord(float(line["time"]), *texts)  # type: ignore[arg-type]
            found.setdefault(made.job, made)
    return list(found.values())


def append(path: Path, content: dict[str, Any]) -> None:
    """Add a JSON line in one write, so that several writers never mix theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines in the last megabyte of a file, garbage and torn ones left out; none where there is no file."""
    if not path.is_file():
        return
    with open(path, "rb") as handle:
        if handle.seek(0, os.SEEK_END) > _FILE_BYTES:
            handle.seek(-_FILE_BYTES, os.SEEK_END)
            handle.readline()
        else:
            handle.seek(0)
        for line in handle.read(_FILE_BYTES).splitlines():
            try:
                content = json.loads(line) if len(line) <= _LINE_BYTES else None
            except (ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                yield content
