"""What is refused before anything is answered, and what result.json says of how the answers were made."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.cli import run
from launch.recipe import load
from shards.sample import Question
from tests.vlm.told import Told, says, shards
from vlm.eval.parts import Part
from vlm.eval.run import evaluate, standing
from vlm.model.assemble import weights_digest

Ask = Callable[..., int]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    def right(question: Question) -> str:
        return (*question.answers, "A")[0]

    return says(monkeypatch, right)


@pytest.fixture
def ask(told: Told, model: Path, tmp_path: Path) -> Ask:
    """`vlm eval demo` in a folder `test`."""
    return lambda *keys: run(["eval", "demo", f"run={tmp_path}", f"model.base={model}", "eval.name=test", *keys])


def result(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "eval" / "test" / "result.json").read_text())
    return found


def options(*indices: int) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Rows of MMBench with two options each, which change places in a rotation."""
    texts, turned = ["cat", "dog"], 10**6
    return [
        (f"question {i}?", ["B" if i > turned else "A"], {"options": texts[:: -1 if i > turned else 1], "index": i})
        for i in indices
    ]


def adapter(folder: Path, alpha: int = 16) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
    return folder


def test_the_result_names_all_that_the_rules_ask_for(ask: Ask, russian: Path, model: Path, tmp_path: Path) -> None:
    weights = adapter(tmp_path / "adapter")
    assert ask(f"eval.data={russian}", f"eval.adapter={weights}", "eval.task=easy-vqa", "eval.instruction=Кратко.") == 0
    found = result(tmp_path)
    assert (found["task"], found["split"], found["n"], found["scorer"]) == ("easy-vqa", "train", 248, "exact-match")
    assert (found["prompt"], found["model"]) == ("{q}\nКратко.", "adapter")
    assert {"engine": "hf", "max_new_tokens": 8, "do_sample": False, "temperature": 0.0, "beams": 1}.items() <= found[
        "generation"
    ].items()
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(weights.iterdir(), reverse=True)]
    assert found["answered_by"] == {
        "engine": "hf", "model": str(model), "url": None, "weights": weights_digest(model), "adapter": str(weights),
        "adapter_digest": hashlib.sha256("".join(digests).encode()).hexdigest(), "dtype": "float32", "template": "",
    }  # fmt: skip


def test_an_adapter_is_its_weights_and_how_they_are_scaled(
    ask: Ask, told: Told, russian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"eval.data={russian}", f"eval.adapter={adapter(tmp_path / 'adapter')}"]
    assert ask(*keys) == 0
    asked = len(told.asked)
    adapter(tmp_path / "adapter", alpha=32)
    assert ask(*keys) == 2 and len(told.asked) == asked
    assert "holds answers for another adapter" in capsys.readouterr().err


def test_what_cannot_be_scored_is_not_asked(
    ask: Ask, told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"eval.data={shards(tmp_path / 'data', 'en', options(1, 1_000_001, 2, 1_000_002))}"
    for keys, said in (
        # the second question's rotation is beyond the limit
        (["eval.limit=3"], "1 rotations are missing, first index 1000002"),
        (["eval.scorer=officious"], "scorer 'officious'"),
    ):
        assert ask(data, "eval.task=mmbench", *keys) == 2 and not told.asked
        assert said in capsys.readouterr().err
    # nor is the folder bound to what was refused
    assert ask(data, "eval.task=mmbench", "eval.scorer=official,lmms-eval") == 0 and len(told.asked) == 4
    assert result(tmp_path)["score"] == 1.0


def test_constrained_answers_need_choices_of_every_question(
    ask: Ask, told: Told, russian: Path, english: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["eval.task=easy-vqa", "eval.constrain=true"]
    assert ask(*keys, f"eval.data={russian}") == 2 and not told.asked
    said = capsys.readouterr().err
    assert "eval.constrain: task easy-vqa has no choices for 248 of 248 questions, first train-0-0, train-0-1," in said
    assert ask(*keys, f"eval.data={english}") == 0


def test_an_evaluation_without_public_answers_stands(ask: Ask, model: Path, tmp_path: Path) -> None:
    rows = [(f"question {i}?", (), None) for i in range(2)]
    keys = [f"eval.data={shards(tmp_path / 'data', 'en', rows)}", "eval.task=text", "eval.scorer=f1,exact"]
    assert ask(*keys) == 0 and result(tmp_path)["score"] is None
    recipe = load("demo", [f"run={tmp_path}", f"model.base={model}", "eval.name=test", *keys])
    assert standing(recipe)


def test_what_a_judge_scores_is_not_scored_here(told: Told, model: Path, tmp_path: Path) -> None:
    data = shards(tmp_path / "data", "en", [("What is it?", ["A cat sits."], {"category": "conv"})])
    keys = [f"run={tmp_path}", f"model.base={model}", f"eval.data={data}", "eval.task=llava-bench"]
    found = evaluate(load("demo", keys), Part(0, 1))
    assert found is not None and (found.score, found.n, len(told.asked)) == (None, 1, 1)


def test_questions_of_one_picture_are_asked_together(ask: Ask, told: Told, tmp_path: Path) -> None:
    """As of MMBench, whose rotations stand far apart; the answers stand in the set's own order."""
    data = shards(tmp_path / "data", "en", [(f"what is {i}?", ["yes"], None) for i in range(40)], pictures=5)
    assert ask(f"eval.data={data}", "eval.task=exact", "eval.batch_size=8") == 0
    assert told.asked == [f"q{i}" for first in range(5) for i in range(first, 40, 5)]
    rows = [json.loads(line) for line in (tmp_path / "eval" / "test" / "predictions.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(40)]


def test_a_run_that_says_nothing_is_told(
    ask: Ask, told: Told, english: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told.say = lambda _: " "
    assert ask(f"eval.data={english}") == 0
    n = result(tmp_path)["n"]
    assert result(tmp_path)["empty"] == n and f"vlm: test: {n} of {n} answers are empty\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../b"])
def test_no_evaluation_leads_out_of_its_run(
    ask: Ask, english: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(f"eval.data={english}", f"eval.name={name}") == 2
    assert f"eval.name: '{name}' leads out of RUN/eval" in capsys.readouterr().err
