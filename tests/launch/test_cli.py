"""The command: help without torch, one clear line and exit 2 for bad input, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from launch.cli import app, run
from shards.build import build
from shards.readers import ReaderOptions, find_reader

COMMANDS = typer.main.get_command(app)


def _paths(command: object, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = getattr(command, "commands", {})
    return [prefix, *(p for name, c in inner.items() for p in _paths(c, (*prefix, name)))]


@pytest.mark.parametrize("path", _paths(COMMANDS), ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    assert "Example: vlm" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from launch.cli import run\n"
        "for words in ([], ['train'], ['eval'], ['shards', 'build'], ['merge']): run([*words, '--help'])\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'submitit', 'numpy', 'omegaconf', 'PIL'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Two samples of our own JSONL with one key."""
    sample = {
        "key": "same",
        "id": "1",
        "source": "test",
        "lang": "en",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        ],
    }
    path = tmp_path / "two.jsonl"
    path.write_text(f"{json.dumps(sample)}\n{json.dumps(sample)}\n")
    return path


def test_bad_input_is_one_line_and_leaves_nothing(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("mine")
    out = tmp_path / "out"
    begun = tmp_path / "begun"
    (begun / "jobs").mkdir(parents=True)
    (begun / "demo.json").write_text('{"limit": 40, "train_base": false}')
    assemble = ["assemble", "--vision", str(taken), "--language", str(taken), "--out", str(out)]
    cases = [
        (["shards", "build", "--reader", "jsonl", "--input", str(lines), "--out", str(out)], "same key 'same'"),
        (["shards", "build", "--reader", "easy-vqa", "--limit", "1", "--out", str(taken)], "holds something else"),
        (["shards", "build", "--reader", "esy-vqa", "--out", str(out)], "did you mean easy-vqa?"),
        (["shards", "build", "--reader", "jsonl", "--input", "nowhere.jsonl", "--out", str(out)], "nowhere.jsonl"),
        (["shards", "verify", str(out)], "vlm shards build"),
        (["shards", "stat", str(out)], "vlm shards build"),
        (["translate", str(tmp_path / "none"), "--out", str(out), "memory=easy_vqa.en-ru"], "vlm shards build"),
        (["translate", str(tmp_path / "none"), "--out", str(out), "memry=x"], "did you mean memory"),
        (["demo", "--out", str(taken)], "holds something else"),
        (["demo", "--out", str(begun)], "was begun with --limit 40, without --train-base; begin likewise, or choose"),
        (["demo", "--out", str(out), "optim.lrr=1"], "did you mean optim.lr"),
        (assemble, "no config.json"),
        ([*assemble, "--new-tokens", "3"], "together"),
        (["train", "demo", f"run={out}", "model.base=nowhere"], "model.base: nowhere"),
        (["eval", "demo", f"run={out}"], "eval.data: empty"),
        (["score", "exactly", str(lines), "--truth", str(out)], "task 'exactly' is unknown; did you mean exact?"),
        (["merge", "demo", f"run={out}", "model.base=nowhere"], "model.base: nowhere"),
        (["report", str(out)], str(out)),
    ]
    for arguments, message in cases:
        assert run(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, (arguments, error)
        assert not out.exists() and [p.name for p in taken.iterdir()] == ["thesis.tex"], arguments


def test_damage_is_found_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    build(find_reader("easy-vqa"), ReaderOptions(limit=3), data)
    assert run(["shards", "verify", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    tar = next(data.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    assert run(["shards", "verify", str(data)]) == 1
    assert tar.name in capsys.readouterr().out
