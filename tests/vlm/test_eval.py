"""Evaluation: cached answers equal plain generation, parts survive kills, results are made only when complete."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from launch.recipe import load
from shards.dataset import ShardDataset
from shards.errors import BadInput
from vlm.config import Recipe
from vlm.eval import run as eval_run
from vlm.eval.parts import Part, read_rows
from vlm.eval.run import Result, evaluate, standing
from vlm.eval.score import read_predictions, score_files
from vlm.eval.tasks import exact_match, find_task


def _recipe(model: Path, data: Path, run: Path, *overrides: str) -> Recipe:
    paths = [f"run={run}", f"model.base={model}", f"eval.data={data}", "eval.name=test", "eval.max_new_tokens=3"]
    return load("demo", [*paths, *overrides])


@pytest.fixture(scope="module")
def whole(model: Path, russian: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An evaluation done in one part."""
    run = tmp_path_factory.mktemp("eval")
    result = evaluate(_recipe(model, russian, run), Part(0, 1))
    assert result is not None
    return run / "eval" / "test", result


def test_answers_equal_plain_generate(model: Path, russian: Path, whole: tuple[Path, Result]) -> None:
    processor = AutoProcessor.from_pretrained(model)
    llava = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    rows = list(read_rows(whole[0] / "predictions.jsonl"))
    dataset = ShardDataset.open(russian)
    images = dict(zip(dataset.keys, (s.image for s in dataset), strict=True))
    assert len(rows) == dataset.info.questions == whole[1].n
    for row in rows[::17]:
        content = [{"type": "image"}, {"type": "text", "text": row.question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=Image.open(io.BytesIO(images[row.key] or b"")), text=text, return_tensors="pt")
        ids = llava.generate(**inputs, max_new_tokens=3)[0, inputs.input_ids.shape[1] :]
        assert processor.decode(ids, skip_special_tokens=True).strip() == row.prediction


def test_parts_survive_a_kill_and_join_byte_identical(
    model: Path, russian: Path, whole: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_run, "CHUNK", 3)
    recipe = _recipe(model, russian, tmp_path)
    folder = tmp_path / "eval" / "test"
    assert evaluate(recipe, Part(1, 2)) is None and not (folder / "result.json").exists()

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done >= 6:
            raise Killed

    with pytest.raises(Killed):
        evaluate(recipe, Part(0, 2), kill)
    journal = folder / "parts" / "part-00000-of-00002.journal"
    assert len(journal.read_text().splitlines()) == 6
    with open(journal, "a") as torn:
        torn.write('{"key": "easyvqa-train-0000')
    seen: list[int] = []
    result = evaluate(recipe, Part(0, 2), lambda done, total: seen.append(done))
    # it went on behind the six samples that had been answered
    assert seen[0] == 9 and not journal.exists()
    assert (folder / "predictions.jsonl").read_bytes() == (whole[0] / "predictions.jsonl").read_bytes()
    assert result is not None and result.score == whole[1].score and standing(recipe)


def test_incomplete_or_doubled_parts_are_refused(model: Path, russian: Path, tmp_path: Path) -> None:
    recipe = _recipe(model, russian, tmp_path)
    evaluate(recipe, Part(0, 2))
    evaluate(recipe, Part(1, 2))
    folder = tmp_path / "eval" / "test"
    part = folder / "parts" / "part-00001-of-00002.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:-1]))
    missing = json.loads(lines[-1])["question_id"]
    with pytest.raises(BadInput, match=f"1 of .* questions have no answer yet, first {missing}"):
        evaluate(recipe, Part(0, 2))
    part.write_text("".join(lines) + lines[0])
    with pytest.raises(BadInput, match="answered twice"):
        evaluate(recipe, Part(0, 2))
    with pytest.raises(BadInput, match="answers for another max_new_tokens"):
        evaluate(_recipe(model, russian, tmp_path, "eval.max_new_tokens=4"), Part(0, 2))


def test_backtranslation_scores_in_the_source_language(
    model: Path, english: Path, russian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Oracle:
        """Answers every question rightly, but for two with words that no memory knows."""

        def answer(self, samples: list[Any], instruction: str) -> list[list[str]]:
            answers = [[q.answers[0] for q in s.questions] for s in samples]
            # neither is in the memory, and the second would be right as it stands
            answers[0][0] = "сиреневый"
            answers[1][0] = {"да": "yes", "нет": "no"}.get(answers[1][0], "circle")
            return answers

    monkeypatch.setattr(eval_run, "_answerer", lambda recipe, adapter: Oracle())
    direct = evaluate(_recipe(model, russian, tmp_path, "eval.name=ru"), Part(0, 1))
    back = evaluate(
        _recipe(
            model, english, tmp_path, "eval.name=back", "eval.protocol=backtranslate", "eval.answers=ru",
            "translate.source_lang=ru", "translate.target_lang=en",
        ),
        Part(0, 1),
    )  # fmt: skip
    assert direct is not None and back is not None
    assert direct.correct == back.correct == direct.n - 2
    assert (back.lang, back.protocol, back.untranslated) == ("en", "backtranslate", 2)
    assert {r.prediction for r in read_rows(tmp_path / "eval" / "back" / "predictions.jsonl")} >= {"yes", "no"}
    with pytest.raises(BadInput, match=r"eval.answers: .*nothing has no result.json"):
        evaluate(_recipe(model, english, tmp_path, "eval.protocol=backtranslate", "eval.answers=nothing"), Part(0, 1))


def test_exact_match_ignores_case_spaces_and_one_period() -> None:
    assert exact_match(" Да. ", ["да"]) == 1 and exact_match("круг", ["да", "круг"]) == 1
    assert exact_match("да..", ["да"]) == 0 and exact_match("", ["да"]) == 0


def test_score_reads_foreign_predictions(english: Path, tmp_path: Path) -> None:
    dataset = ShardDataset.open(english)
    rows = [{"question_id": q.question_id, "prediction": q.answers[0]} for s in dataset for q in s.questions]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in reversed(rows)))
    assert score_files(find_task("exact"), dataset, read_predictions([path]))["score"] == 1.0
    path.write_text("\n".join(json.dumps(r) for r in rows[1:]))
    with pytest.raises(BadInput, match=f"{rows[0]['question_id']} has no prediction"):
        score_files(find_task("exact"), dataset, read_predictions([path]))
    for rubbish in ("{", "[]", '{"question_id": 1, "prediction": "x"}', '{"question_id": "a"}'):
        path.write_text(rubbish)
        with pytest.raises(BadInput, match=r"p\.jsonl:1"):
            read_predictions([path])


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/0", "0/1/2"])
def test_bad_parts_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--part"):
        Part.parse(text)
    assert [list(Part(i, 3).samples(7)) for i in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
