"""What cannot train is one line and exit 2 before a rank starts; what trains badly warns there."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from launch.cli import run as vlm
from shards.files import write_manifest
from vlm.data.template import TEMPLATES

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class Started(Exception):
    """The ranks would have started."""


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(ranks: int, arguments: Sequence[str]) -> int:
        raise Started

    monkeypatch.setattr("launch.ranks.start_ranks", start)


def arguments(model: Path, data: Path, run: Path, *overrides: str) -> list[str]:
    return ["train", "demo", "engine.ranks=2", f"run={run}", f"model.base={model}", f"data.train={data}", *overrides]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.targets=[q_prj]"], "adapter.targets: no layer 'q_prj'; the language model has down_proj"),
        (["model.attention=flash"], "model.attention: unknown back end 'flash'"),
        pytest.param(["model.attention=flash-attn"], "flash-attn needs a CUDA GPU", marks=NO_GPU),
        pytest.param(["model.liger=true"], "model.liger: its kernels need a CUDA GPU", marks=NO_GPU),
        (["model.checkpoint_blocks=-1"], "model.checkpoint_blocks: -1 is below 0"),
        (["engine.deepspeed=zero9"], "engine.deepspeed: zero9: no such file"),
        (["adapter.method=prefix", "adapter.virtual_tokens=0"], "at least 1"),
        (["engine.ranks=100000"], "engine.ranks: 100000 ranks on this machine"),
    ],
)
def test_what_cannot_train_is_one_line(
    overrides: list[str], message: str, model: Path, russian: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert vlm(arguments(model, russian, tmp_path / "run", *overrides)) == 2
    error = capfd.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_made(
    model: Path, russian: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    run = tmp_path / "file" / "run"
    assert vlm(arguments(model, russian, run, "engine.ranks=1")) == 2
    error = capfd.readouterr().err
    assert f"run: {run}: cannot be written (Not a directory)" in error and len(error.splitlines()) == 1


def test_what_this_machine_lacks(
    model: Path, russian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for override, message in [
        ("adapter.method=qlora", "adapter.method: qlora needs bitsandbytes, which is not installed: pip install"),
        ("model.compile_blocks=true", "model.compile_blocks: no compiler"),
    ]:
        assert vlm(arguments(model, russian, tmp_path / "run", override)) == 2
        error = capfd.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_a_method_that_does_not_fit_the_model(
    model: Path, russian: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(model, plain)
    assembly = json.loads((plain / "assembly.json").read_text())
    (plain / "assembly.json").write_text(json.dumps({**assembly, "new_token_ids": []}))
    (plain / "MANIFEST.json").unlink()
    write_manifest(plain)
    assert vlm(arguments(plain, russian, tmp_path / "run", "adapter.method=tokens")) == 2
    assert "`vlm assemble` added no tokens to model.base" in capfd.readouterr().err


def template(folder: Path, **changed: object) -> Path:
    fields = {f: getattr(TEMPLATES["mistral-instruct"], f) for f in ("name", "start", "system", "user", "assistant")}
    fields |= {"answer": " {text}</s>", "system_in_user": True, "markers": ["<s>", "</s>"], **changed}
    (folder / "own.yaml").write_text(json.dumps(fields))
    return folder / "own.yaml"


def test_a_template_that_never_shows_an_answer(
    model: Path, russian: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = template(tmp_path, answer="</s>")
    assert vlm(arguments(model, russian, tmp_path / "run", f"data.template={path}")) == 2
    assert "key 'answer' must hold {text} once" in capfd.readouterr().err


def test_what_trains_badly_warns_before_ranks_start(
    model: Path, russian: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # 32 times as much to learn as to read
    path = template(tmp_path, user="{text}", assistant="", answer="a " * 400 + "{text}", markers=["<s>"])
    common = [f"data.template={path}", "data.max_length=300", "optim.max_steps=1"]
    with pytest.raises(Started):
        vlm(arguments(model, russian, tmp_path / "run", *common))
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("vlm: ") for line in lines) and len(lines) == 3, lines
    assert "of the text tokens carry a loss, usual are" in lines[0] and "samples are cut" in lines[1]
    assert "ends answers with no marker" in lines[2]
    # an estimate says the same, beside its figures
    assert vlm(["estimate", *arguments(model, russian, tmp_path / "run", *common)[1:], "--json"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["samples"] == 24
    said = [line for line in shown.err.splitlines() if line.startswith("vlm: ")]
    assert [line.rpartition("; ")[2] for line in said] == [line.rpartition("; ")[2] for line in lines]
