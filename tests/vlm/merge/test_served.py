"""A merged model behind real servers: a plain OpenAI client gets what `vlm eval` answers."""

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.recipe import load
from shards.dataset import ShardDataset
from tests.served import running, transformers_serve
from tests.vlm.merge.handed import write_run
from vlm.eval.parts import Part, read_rows
from vlm.eval.run import evaluate

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

SAMPLES = 2
VLLM = os.environ.get("RUVLM_VLLM", "")
"""The command `vllm`, which has an environment of its own; docs/handover.md."""


def _evaluated(name: str, run: Path, model: Path, russian: Path, *more: str) -> dict[str, str]:
    keys = [f"run={run}", f"model.base={model}", f"eval.data={russian}", f"eval.name={name}", f"eval.limit={SAMPLES}"]
    assert (
        evaluate(load("demo", [*keys, "eval.max_new_tokens=4", "model.dtype=float32", *more]), Part(0, 1)) is not None
    )
    rows = read_rows(run / "eval" / name / "predictions.jsonl")
    return {row.question_id: row.prediction for row in rows}


def _answered(url: str, name: str, russian: Path) -> dict[str, str]:
    dataset, found = ShardDataset.open(russian), {}
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for sample in (dataset.read(i) for i in range(SAMPLES)):
            image = f"data:image/png;base64,{base64.b64encode(sample.image or b'').decode()}"
            for question in sample.questions:
                content = [
                    {"type": "image_url", "image_url": {"url": image}},
                    {"type": "text", "text": question.wording},
                ]
                done = client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": content}], max_tokens=4, temperature=0, seed=0
                )
                found[question.question_id] = (done.choices[0].message.content or "").strip()
    return found


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "run"
    write_run(folder, model, r=4)
    return folder


@pytest.fixture(scope="module")
def wanted(run: Path, model: Path, russian: Path) -> dict[str, str]:
    answers = _evaluated("adapted", run, model, russian, "eval.adapter=latest")
    assert answers != _evaluated("base", run, model, russian, "eval.adapter=''") and len(answers) > SAMPLES
    return answers


def test_transformers_serve_answers_as_the_evaluation_does(
    vlm: Callable[..., tuple[int, str, str]],
    run: Path,
    wanted: dict[str, str],
    model: Path,
    russian: Path,
    tmp_path: Path,
) -> None:
    merged = tmp_path / "merged"
    assert vlm("merge", run, "--base", model, "--out", merged)[0] == 0
    with transformers_serve(merged, tmp_path / "log") as url:
        assert _answered(url, str(merged), russian) == wanted


def _whole(answers: dict[str, str]) -> dict[str, str]:
    """vLLM keeps back a letter of which it has not all bytes."""
    return {question: answer.rstrip("\ufffd") for question, answer in answers.items()}


@pytest.mark.skipif(not VLLM, reason="needs RUVLM_VLLM, the command of a vLLM")
def test_vllm_answers_as_the_evaluation_does(
    vlm: Callable[..., tuple[int, str, str]],
    run: Path,
    wanted: dict[str, str],
    model: Path,
    russian: Path,
    tmp_path: Path,
) -> None:
    """The merged folder, and the LoRA that is handed over beside its base."""
    options = ["--dtype", "float32", "--max-model-len", "512"]
    merged = tmp_path / "merged"
    assert vlm("merge", run, "--base", model, "--out", merged)[0] == 0
    with running([VLLM, "serve", str(merged), *options], tmp_path / "log") as url:
        assert _whole(_answered(url, str(merged), russian)) == _whole(wanted)
    code, command, _ = vlm("handover", "vllm", run, "--base", model, "--out", tmp_path / "lora")
    assert code == 0
    with running([VLLM, *command.split()[1:], *options], tmp_path / "log") as url:
        assert _whole(_answered(url, "lora", russian)) == _whole(wanted)
