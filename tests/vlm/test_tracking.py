"""Figures for TensorBoard and W&B: the same scalars, a resumed run goes on in the same one."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.errors import BadInput
from vlm.engine import EngineConfig
from vlm.tracking import Board, require_trackers

FIGURES = {"step": 0, "loss": 1.5, "grad_norm": None, "lr": 2e-4}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    for name, value in {"WANDB_MODE": "offline", "HOME": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)


def records(file: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """Runs and rows of history in W&B's own file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs, rows = [], []
    for record in map(Record.FromString, leveldb_log(file.read_bytes())):
        if record.HasField("run"):
            runs.append(record.run)
        elif record.HasField("history"):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return runs, rows


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind W&B's header of 7 bytes: checksum, length, kind in 7 bytes, blocks of 32 KiB."""
    at, record = 7, b""
    while at < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_offline_goes_on_in_the_same_run(offline: None, tmp_path: Path) -> None:
    run, config = tmp_path / "run", EngineConfig(wandb=True, tensorboard=True)
    run.mkdir()
    require_trackers(config)
    for first in (0, 2):
        board = Board(config, "saiga", run, first, {"seed": 7})
        for step in (first + 1, first + 2):
            board.write(step, {**FIGURES, "step": step, "loss": 1 / step})
        board.close()
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    (mine, rows), (again, more) = map(records, files)
    assert mine[0].run_id == again[0].run_id == json.loads((run / "wandb.json").read_text())["id"]
    assert (mine[0].project, mine[0].display_name) == ("saiga", "run")
    assert "seed" in {item.key for item in mine[0].config.update}
    assert rows[0] == {"step": 1, "train/loss": 1.0, "train/lr": 2e-4}
    assert [row["step"] for row in (*rows, *more)] == [1, 2, 3, 4]


def test_tensorboard_gets_the_same_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 1):
        board = Board(EngineConfig(tensorboard=True), "saiga", tmp_path, first, {})
        for step in (1, 2):
            if step > first:
                board.write(step, {**FIGURES, "loss": first + step})
        board.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert read.Tags()["scalars"] == ["train/loss", "train/lr"]
    # the second incarnation's step 2 stands, not the first one's
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 1.0), (2, 3.0)]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shards.extras.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(BadInput, match=rf'engine.{name} needs {name}, .*: pip install "ruvlm\[{name}\]"'):
            require_trackers(EngineConfig(**{name: True}))
    Board(EngineConfig(), "saiga", tmp_path, 0, {}).write(1, FIGURES)
    assert not list(tmp_path.iterdir())


def test_without_a_key_the_remedy_is_said(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match="run `wandb login`, or set WANDB_MODE=offline"):
        require_trackers(EngineConfig(wandb=True))
