"""VizWiz and TextVQA: what their scripts do otherwise than VQAv2's, and how their questions are asked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch.cli import run
from shards.translate.glossary import Glossary
from vlm.eval.asking import Asking
from vlm.eval.config import EvalConfig
from vlm.eval.score import score
from vlm.eval.tasks import find_task
from vlm.eval.tasks.base import Item


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path


_VIZWIZ = [
    ("VizWiz_val_0.jpg", "unanswerable", 0, ["unanswerable"] * 10, "Unanswerable."),
    ("VizWiz_val_1.jpg", "unanswerable", 0, ["unanswerable"] * 4 + ["Coke"] * 6, "Coke"),
    ("VizWiz_val_2.jpg", "other", 1, ["dont stop"] * 5 + ["don't stop"] * 5, "dont stop"),
    ("VizWiz_val_3.jpg", "yes/no", 1, ["yes"] * 10, "unanswerable"),
    ("VizWiz_val_4.jpg", "number", 1, ["2"] * 3 + ["two"] * 7, "two"),
]


@pytest.mark.parametrize(
    ("scorer", "by_type", "f1"),
    [
        # the annotators' answers stay as they are: "coke" is not "Coke", "2" is not "two"; don’t has its own apostrophe
        ("official", {"number": 90.0, "other": 0.0, "unanswerable": 50.0, "yes/no": 0.0}, 50.0),
        ("all-ten", {"number": 100.0, "other": 0.0, "unanswerable": 50.0, "yes/no": 0.0}, 50.0),
        ("llava", {"number": 90.0, "other": 100.0, "unanswerable": 50.0, "yes/no": 0.0}, 50.0),
        ("lmms-eval", {"number": 100.0, "other": 100.0, "unanswerable": 100.0, "yes/no": 0.0}, 50.0),
    ],
)
def test_vizwiz(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorer: str, by_type: dict[str, float], f1: float
) -> None:
    annotations = [
        {
            "image": image,
            "question": "What?",
            "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers],
            "answer_type": kind,
            "answerable": answerable if kind == "unanswerable" else str(answerable),
        }
        for image, kind, answerable, answers, _ in _VIZWIZ
    ]
    truth = _write(tmp_path / "val.json", annotations)
    results = _write(tmp_path / "results.json", [{"image": row[0], "answer": row[-1]} for row in _VIZWIZ])
    command = ["score", "vizwiz", "--truth", str(truth), "--predictions", str(results), "--json", "--scorer", scorer]
    assert run(command) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["perAnswerType"] == by_type
    # 2 unanswerable of 5; 2 said so, 1 rightly: precision and recall 1/2, and all 5 at a base rate of 2/5
    assert metrics["unanswerability"] == {"f1_score": f1, "average_precision": 45.0}


def test_answerable_is_0_or_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"image": "a", "question": "?", "answers": [{"answer": "x"}], "answer_type": "other", "answerable": "no"}
    results = _write(tmp_path / "results.json", [{"image": "a", "answer": "x"}])
    truth = _write(tmp_path / "val.json", [row])
    assert run(["score", "vizwiz", str(results), "--truth", str(truth)]) == 2
    assert "entry 0: field 'answerable': 0 or 1 is wanted, not 'no'" in capsys.readouterr().err
    _write(truth, [{name: value for name, value in row.items() if name != "answerable"}])
    assert run(["score", "vizwiz", str(results), "--truth", str(truth)]) == 0


def test_vizwiz_takes_no_file_of_vqav2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = _write(tmp_path / "annotations.json", {"annotations": []})
    results = _write(tmp_path / "results.json", [{"question_id": 10, "answer": "cat"}])
    assert run(["score", "vizwiz", "--truth", str(truth), "--predictions", str(results)]) == 2
    assert "a list of objects is wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prediction", "parsed"),
    [
        ("girl's", "girl 's"),
        ("what's up?", "what 's up"),
        ("one, two", "1 2"),
        ("what?now", "whatnow"),
        ("1,000 red-white", "1000 red white"),
        ("The Couldnt've", "couldn't've"),
        ("?", ""),
    ],
)
def test_textvqa_is_the_m4c_evaluator(tmp_path: Path, prediction: str, parsed: str) -> None:
    row = {"question_id": 7, "image_id": "f1", "question": "what?", "answers": [prediction] * 4 + ["x"] * 6}
    truth = _write(tmp_path / "val.json", {"dataset_name": "textvqa", "data": [row]})
    task = find_task("textvqa")
    for scorer in ("official", "lmms-eval", "llava"):
        outcome = score(task, task.read(truth, None), {"7": prediction.upper()}, scorer)
        assert outcome.marks[0].parsed == parsed
        assert outcome.metrics == {"overall": 100.0, "perAnswerType": {}, "perQuestionType": {}}


@pytest.mark.parametrize(
    ("task", "lang", "wanted"),
    [
        (
            "vizwiz",
            "en",
            "{q}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            "Answer the question using a single word or phrase.",
        ),
        (
            "vizwiz",
            "ru",
            "{q}\nЕсли данных для ответа недостаточно, ответь «Без ответа».\nОтветь на вопрос одним словом или фразой.",
        ),
        ("textvqa", "en", "{q}\nAnswer the question using a single word or phrase."),
    ],
)
def test_questions_are_asked_as_llava_asks_them(task: str, lang: str, wanted: str) -> None:
    assert Asking.of(EvalConfig(name="x", task=task), lang).prompt == wanted


def test_vizwiz_in_russian_is_asked_translated_and_scored_by_one_word() -> None:
    task = find_task("vizwiz")
    word = re.findall("«(.*?)»", Asking.of(EvalConfig(task="vizwiz"), "ru").instruction)[0]
    assert Glossary.named("", "en", "ru").lookup("unanswerable") == word.lower()
    said = [(0, word), (0, word + "."), (0, "Unanswerable"), (0, "кот"), (1, word), (1, "кот")]
    for scorer in task.scorers:
        for lang, f1 in (("ru", 75.0), ("ru-RU", 75.0), ("en", 40.0)):
            items = [
                Item(
                    str(i), str(i), "что?", (word.lower(),) * 10, "other", lang=lang, details={"answerable": answerable}
                )
                for i, (answerable, _) in enumerate(said)
            ]
            outcome = score(task, items, {str(i): answer for i, (_, answer) in enumerate(said)}, scorer)
            assert outcome.metrics["unanswerability"]["f1_score"] == f1, (scorer, lang)
            assert [mark.points for mark in outcome.marks] == [1, 1, 0, 0, 1, 0]
