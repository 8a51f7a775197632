"""The English base's three trainings, shortened: each moves its own weights and nothing else."""

import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launch.recipe import load
from shards.build import build
from shards.errors import BadInput
from shards.files import read_json, write_json, write_manifest
from shards.readers import ReaderOptions, find_reader
from vlm.demo import base
from vlm.demo.base import install_kept, sparkline, tower_step
from vlm.demo.contrastive import Settings, contrastive_loss
from vlm.export import export
from vlm.train import losses

MODULES = ("vision_tower", "multi_modal_projector", "language_model")


def _moved(before: Path, after: Path) -> set[str]:
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    return {m for m in MODULES if any(m in n.split(".") and not torch.equal(old[n], new[n]) for n in old)}


def test_three_steps_move_their_own_weights(
    run_train: Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"], model: Path, english: Path, tmp_path: Path
) -> None:
    captions, tower = tmp_path / "captions", tmp_path / "tower"
    build(find_reader("easy-vqa-captions"), ReaderOptions(limit=64), captions)
    tower_step(model, captions, tower, tmp_path / "t", Settings(epochs=2, batch_size=16))
    assert _moved(model, tower) == {"vision_tower"}
    found = losses(tmp_path / "t")
    assert found[2] < found[1]

    moves = {"projector": {"multi_modal_projector"}, "questions": set(MODULES)}
    origin = tower
    for step, data in (("projector", captions), ("questions", english)):
        settings = [f"run={tmp_path / 'run' / step}", f"model.base={origin}", f"data.train={data}", "optim.max_steps=2"]
        done = run_train([f"demo_{step}", *settings])
        assert done.returncode == 0, done.stderr[-3000:]
        out = tmp_path / "models" / step
        export(load(f"demo_{step}", settings), out)
        assert _moved(origin, out) == moves[step]
        origin = out


def test_contrastive_loss_counts_equal_captions_as_positives() -> None:
    perfect = torch.tensor([[50.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    captions = torch.tensor([0, 0, 1])
    # two images share caption 0: from text to image the best is half each, -log(1/2) for that caption
    assert float(contrastive_loss(perfect, captions)) == pytest.approx(math.log(2) / 4, abs=1e-5)
    assert contrastive_loss(-perfect, captions) > 20


def test_kept_base_of_another_model_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in model.iterdir():
        if path.name != "MANIFEST.json":
            (kept / path.name).write_bytes(path.read_bytes())
    write_manifest(kept)
    monkeypatch.setattr(base, "KEPT", kept)
    install_kept(model, tmp_path / "out")
    assert _moved(model, tmp_path / "out") == set()
    config = read_json(kept / "config.json")
    config["text_config"]["hidden_size"] += 1
    write_json(kept / "config.json", config)
    with pytest.raises(BadInput, match=r"damaged: config.json"):
        install_kept(model, tmp_path / "other")
    write_manifest(kept)
    with pytest.raises(BadInput, match=r"config.json: differs from .*--train-base"):
        install_kept(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_sparkline_follows_the_curve() -> None:
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁" and len(sparkline(list(map(float, range(1000))))) <= 40
    assert sparkline([1.0, 1.0]) == "▁▁"
