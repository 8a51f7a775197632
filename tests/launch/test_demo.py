"""The demo on a part of its data: whole, killed again and again, and read by nothing but public libraries."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import webdataset
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from launch.demo import Demo, stages
from shards.dataset import ShardDataset
from vlm import checkpoint
from vlm.train import losses

LIMIT = 240
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.getcwd()}
RESULTS = {
    ("base", "en", "direct"),
    ("base", "ru", "direct"),
    ("adapter", "ru", "direct"),
    ("adapter", "en", "backtranslate"),
}


def _command(out: Path) -> list[str]:
    demo = [sys.executable, "-u", "-m", "launch.cli", "demo", "--out", str(out), "--limit", str(LIMIT)]
    return [*demo, "optim.epochs=1", "checkpoint.every=3"]


def _run(out: Path) -> str:
    done = subprocess.run(_command(out), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    assert "report:" in _run(out)
    return out


def _results(out: Path) -> dict[tuple[str, str, str], dict[str, object]]:
    rows = json.loads((out / "benchmark_results.json").read_text())["results"]
    return {(r["model"], r["lang"], r["protocol"]): r for r in rows}


def test_the_table_of_document_a(demo: Path) -> None:
    results = _results(demo)
    assert set(results) == RESULTS
    questions = ShardDataset.open(demo / "data" / "ru-test").info.questions
    assert all(r["n"] == questions and r["scorer"] == "exact-match" for r in results.values())
    assert float(results["base", "en", "direct"]["score"]) >= 0.95  # type: ignore[arg-type]
    # bijective words: what is right in Russian is right in English, and nothing else
    there, back = results["adapter", "ru", "direct"], results["adapter", "en", "backtranslate"]
    assert there["score"] == back["score"]
    for name in ("error_analysis.json", "project_report.txt", "report.html"):
        assert (demo / name).stat().st_size > 500


def test_a_second_run_skips_what_stands(demo: Path) -> None:
    said = _run(demo)
    total = len(stages(Demo(demo, LIMIT, ()), train_base=False))
    assert said.count("stands, skipped") == total - 1 and f"[{total}/{total}] report: done" in said


@pytest.mark.slow
def test_killed_at_every_kind_of_stage_it_ends_with_the_same_figures(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    moments = {
        "ru-train": signal.SIGKILL,
        "assemble": signal.SIGINT,
        "step 1/": signal.SIGKILL,
        "done: ": signal.SIGKILL,
        "eval-ru-adapter": signal.SIGINT,
        "merge": signal.SIGKILL,
    }
    for moment, number in moments.items():
        # a shell's background job is born with SIGINT ignored, and so would be the demo
        process = subprocess.Popen(
            _command(out),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if moment in line and "skipped" not in line:
                break
        else:
            pytest.fail(f"{moment} never came, exit code {process.wait()}:\n{''.join(said)[-3000:]}")
        process.send_signal(number)
        process.stdout.read()
        assert process.wait() == (130 if number == signal.SIGINT else -signal.SIGKILL)
    _run(out)
    assert _results(out) == _results(demo)
    assert losses(out) == losses(demo)
    for name in ("ru-adapter", "en-base", "ru-base"):
        predictions = Path("eval") / name / "predictions.jsonl"
        assert (out / predictions).read_bytes() == (demo / predictions).read_bytes()
    merged = Path("merged") / "model.safetensors"
    assert (out / merged).read_bytes() == (demo / merged).read_bytes()


def test_only_public_libraries_read_what_it_wrote(demo: Path) -> None:
    tars = sorted(map(str, (demo / "data" / "ru-test").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert len(samples) == LIMIT and samples[0]["json"]["lang"] == "ru"

    newest = checkpoint.newest(demo)
    assert newest is not None
    base = LlavaForConditionalGeneration.from_pretrained(demo / "models" / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, newest / "adapter").eval()
    merged = LlavaForConditionalGeneration.from_pretrained(demo / "merged", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(demo / "merged")
    rows = [json.loads(line) for line in (demo / "eval" / "ru-adapter" / "predictions.jsonl").read_text().splitlines()]
    by_key = {s["__key__"]: s["png"] for s in samples}
    for row in rows[::97]:
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=by_key[row["key"]], text=text, return_tensors="pt")
        for model in (adapted, merged):
            ids = model.generate(**inputs, max_new_tokens=8)[0, inputs.input_ids.shape[1] :]
            assert processor.decode(ids, skip_special_tokens=True).strip() == row["prediction"]


def test_kept_base_is_small_and_whole() -> None:
    from shards.files import verify_manifest
    from vlm.demo.base import KEPT

    assert not verify_manifest(KEPT)
    assert sum(p.stat().st_size for p in KEPT.rglob("*")) <= 8 * 10**6


def test_images_of_the_shards_are_the_sources_bytes(demo: Path) -> None:
    from easy_vqa import get_test_image_paths

    dataset = ShardDataset.open(demo / "data" / "ru-test")
    for i in (0, 7):
        sample = dataset.read(i)
        path = get_test_image_paths()[int(sample.key.rsplit("-", 1)[1])]
        assert sample.image == Path(path).read_bytes() and Image.open(io.BytesIO(sample.image)).size == (64, 64)
