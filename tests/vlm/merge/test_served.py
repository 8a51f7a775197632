"""A merged model behind a real `transformers serve`: a plain OpenAI client gets what `vlm eval` answers."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.recipe import load
from shards.dataset import ShardDataset
from tests.served import transformers_serve
from tests.vlm.merge.handed import write_run
from vlm.eval.parts import Part, read_rows
from vlm.eval.run import evaluate

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

SAMPLES = 2


def _evaluated(name: str, run: Path, model: Path, russian: Path, *more: str) -> dict[str, str]:
    keys = [f"run={run}", f"model.base={model}", f"eval.data={russian}", f"eval.name={name}", f"eval.limit={SAMPLES}"]
    assert evaluate(load("demo", [*keys, "eval.max_new_tokens=4", *more]), Part(0, 1)) is not None
    rows = read_rows(run / "eval" / name / "predictions.jsonl")
    return {row.question_id: row.prediction for row in rows}


def test_a_plain_client_gets_the_answers_of_the_evaluation(
    vlm: Callable[..., tuple[int, str, str]], model: Path, russian: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_run(run, model, r=4)
    assert vlm("merge", run, "--base", model, "--out", tmp_path / "merged")[0] == 0
    wanted = _evaluated("adapted", run, model, russian, "eval.adapter=latest")
    assert wanted != _evaluated("base", run, model, russian, "eval.adapter=''") and len(wanted) > SAMPLES
    dataset, found = ShardDataset.open(russian), {}
    with (
        transformers_serve(tmp_path / "merged", tmp_path / "log") as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        for sample in (dataset.read(i) for i in range(SAMPLES)):
            image = f"data:image/png;base64,{base64.b64encode(sample.image or b'').decode()}"
            for question in sample.questions:
                content = [
                    {"type": "image_url", "image_url": {"url": image}},
                    {"type": "text", "text": question.wording},
                ]
                done = client.chat.completions.create(
                    model=str(tmp_path / "merged"), messages=[{"role": "user", "content": content}], max_tokens=4,
                    temperature=0, seed=0,
                )  # fmt: skip
                found[question.question_id] = (done.choices[0].message.content or "").strip()
    assert found == wanted
