"""POPE: the official parser, lists that count from the same start, figures by list and by file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cli import run
from shards.errors import BadInput
from shards.sample import Question
from tests.vlm.lmms_bridge import MISSING, PYTHON, lmms_eval
from vlm.eval.score import read_predictions, read_truth, score
from vlm.eval.tasks import find_task
from vlm.eval.tasks.base import Item, Outcome

POPE, RUSSIAN = find_task("pope"), find_task("pope-ru")
_LISTS = ("adversarial", "popular", "random")
_WORDS = "yes|no|Yes|No|NO|not|Нет|нет|да||.|yes.|No, it is| no"
_ANSWERS = st.sampled_from(_WORDS.split("|")) | st.text(alphabet="NnoOtYyeEsS .,\n", max_size=8)
_LABELS = st.sampled_from(["yes", "no"])


def _items(labels: list[str], categories: list[str] | None = None, lang: str = "en") -> list[Item]:
    names = categories or ["random"] * len(labels)
    return [
        Item(f"{c}-{i}", f"image{i % 3}", "", (label,), c, (), lang, {"label": label, "category": c})
        for i, (label, c) in enumerate(zip(labels, names, strict=True))
    ]


def _outcome(labels: list[str], answers: list[str], scorer: str = "", **how: Any) -> Outcome:
    items = _items(labels, **how)
    task = RUSSIAN if how.get("lang") == "ru" else POPE
    return score(task, items, {item.question_id: a for item, a in zip(items, answers, strict=True)}, scorer)


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def _label(number: int, label: str = "yes", **more: Any) -> dict[str, Any]:
    return {"question_id": number, "image": f"{number}.jpg", "text": "Is there a dog?", "label": label, **more}


def _answer(number: int, text: str = "Yes", **more: Any) -> dict[str, Any]:
    return {"question_id": number, "text": text, **more}


@pytest.mark.parametrize(
    ("answer", "official", "lmms"),
    [
        ("yes", "yes", "yes"),
        ("No", "no", "no"),
        ("no", "no", "no"),
        ("There is not", "no", "there is not"),
        ("NO", "yes", "no"),
        ("None", "yes", "none"),
        ("", "yes", ""),
        ("No, there is.", "no", "no, there is."),
        ("Yes. No dog.", "yes", "yes. no dog."),
        ("n,o", "no", "n,o"),
        ("there is\nno dog", "yes", "there is\nno dog"),
        (" no ", "no", "no"),
        ("no!", "yes", "no!"),
        (".No", "yes", ".no"),
    ],
)
def test_official_parser_looks_for_a_word_and_lmms_eval_at_the_whole(answer: str, official: str, lmms: str) -> None:
    assert _outcome(["yes"], [answer]).marks[0].parsed == official
    assert _outcome(["yes"], [answer], "lmms-eval").marks[0].parsed == lmms


@pytest.mark.parametrize(
    ("answer", "official"),
    [("Да", "да"), ("Нет", "нет"), ("нет, не вижу", "нет"), ("Собаки не видно.", "нет"), ("НЕТ", "да"), ("No", "нет")],
)
def test_russian_has_the_same_rule(answer: str, official: str) -> None:
    outcome = _outcome(["no"], [answer], lang="ru")
    assert (outcome.marks[0].parsed, outcome.marks[0].points) == (official, float(official == "нет"))
    assert _outcome(["нет"], [answer], "lmms-eval", lang="ru").marks[0].points == float(answer in ("Нет", "НЕТ"))
    assert RUSSIAN.choices(outcome.marks[0].item) == ("Да", "Нет")


def test_figures_of_a_list() -> None:
    metrics = _outcome(["yes", "yes", "yes", "no", "no"], ["Yes", "Yes", "No", "Yes", "No"]).metrics
    wanted = {
        "n": 5, "tp": 2, "fp": 1, "tn": 1, "fn": 1, "accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3,
        "f1": 2 / 3, "yes_ratio": 0.6,
    }  # fmt: skip
    assert metrics["by_category"]["random"] == pytest.approx(wanted)
    assert metrics["overall"] == pytest.approx(wanted)
    assert metrics["mean_f1"] == pytest.approx(2 / 3)


def test_lmms_eval_counts_the_yes_of_the_truth_and_no_other_answer_as_a_miss() -> None:
    found = _outcome(["yes", "yes", "no", "no"], ["Yes", "maybe", "yes", "yes"], "lmms-eval").metrics["overall"]
    assert (found["tp"], found["fp"], found["tn"], found["fn"]) == (1, 2, 0, 0)
    assert (found["recall"], found["yes_ratio"]) == (1.0, 0.5)


@pytest.mark.parametrize("answer", ["Yes", "No"])
@pytest.mark.parametrize("label", ["yes", "no"])
@pytest.mark.parametrize("scorer", ["official", "lmms-eval"])
def test_nothing_is_divided_by_nothing(answer: str, label: str, scorer: str) -> None:
    outcome = _outcome([label], [answer], scorer)
    assert outcome.score == outcome.metrics["by_category"]["random"]["f1"] == float(answer == "Yes" and label == "yes")


@given(st.lists(st.tuples(_LABELS, _ANSWERS, st.sampled_from(_LISTS), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_statistic_is_the_score_of_repeated_questions(rows: list[tuple[str, str, str, int]]) -> None:
    labels, answers, lists, times = map(list, zip(*rows, strict=True))
    for scorer in POPE.scorers:
        outcome = _outcome(labels, answers, scorer, categories=lists)
        assert outcome.statistic(np.ones(len(rows))) == outcome.score
        repeated = [row for row in rows for _ in range(row[3])]
        value = outcome.statistic(np.array(times, dtype=float))
        if repeated:
            again = _outcome(*map(list, list(zip(*repeated, strict=True))[:2]), scorer,
                             categories=[row[2] for row in repeated])  # fmt: skip
            assert value == pytest.approx(again.score)
        else:
            assert np.isnan(value)


def test_one_file_in_any_order_with_categories_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [_label(1, category="popular"), _label(2, "no", category="popular"), _label(3, category="adversarial")]
    truth = _lines(tmp_path / "truth.jsonl", labels)
    answers = _lines(tmp_path / "answers.jsonl", [_answer(3, "No"), _answer(1), _answer(2)])
    assert run(["score", "pope", str(answers), "--truth", str(truth), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["scorer"]) == (3, "official")
    assert found["metrics"]["by_category"]["popular"]["f1"] == pytest.approx(2 / 3)
    assert found["metrics"]["by_category"]["adversarial"]["f1"] == 0.0
    assert found["metrics"]["by_file"]["truth.jsonl"]["tp"] == 1
    assert found["score"] == found["metrics"]["mean_f1"] == pytest.approx(1 / 3)


def _three(folder: Path) -> Path:
    folder.mkdir()
    for name in _LISTS:
        _lines(folder / f"coco_pope_{name}.json", [_label(1, "yes" if name == "random" else "no"), _label(2)])
    return folder


def test_three_lists_with_the_same_ids_pair_by_category_or_by_file_name(tmp_path: Path) -> None:
    truth, right = _three(tmp_path / "coco"), {"random": "Yes", "popular": "No", "adversarial": "No"}
    rows = [_answer(n, right[name] if n == 1 else "Yes", category=name) for name in _LISTS for n in (2, 1)]
    together = [_lines(tmp_path / "all.jsonl", rows)]
    apart = [
        _lines(tmp_path / f"answers-{name}.jsonl", [_answer(1, right[name]), _answer(2)]) for name in reversed(_LISTS)
    ]
    by_id = [_lines(tmp_path / "ids.jsonl", [{**row, "question_id": f"{row.pop('category')}-{row['question_id']}"}
                                             for row in map(dict, rows)])]  # fmt: skip
    for files in (together, apart, by_id):
        outcome = score(POPE, read_truth(POPE, truth), read_predictions(POPE, files))
        assert (outcome.score, outcome.n) == (1.0, 6)
        assert set(outcome.metrics["by_category"]) == set(_LISTS)
        assert set(outcome.metrics["by_file"]) == {f"coco_pope_{name}.json" for name in _LISTS}


def test_a_list_that_is_named_pairs_with_answers_that_are_not(tmp_path: Path) -> None:
    named = _lines(tmp_path / "coco_pope_random.json", [_label(1), _label(2)])
    unnamed = _lines(tmp_path / "mine.json", [_label(1), _label(2)])
    answers = [_lines(tmp_path / name, [_answer(2), _answer(1)]) for name in ("a.jsonl", "a_random.jsonl")]
    for truth, category in ((named, "random"), (unnamed, "mine")):
        for given_answers in answers:
            outcome = score(POPE, read_truth(POPE, truth), read_predictions(POPE, [given_answers]))
            assert (outcome.score, list(outcome.metrics["by_category"])) == (1.0, [category])


@pytest.mark.parametrize(
    ("truth", "answers", "more"),
    [("coco_pope_random.json", "a_popular.jsonl", {}), ("coco_pope_random.json", "a.jsonl", {"category": "popular"})],
)
def test_answers_of_another_list_are_refused(tmp_path: Path, truth: str, answers: str, more: dict[str, str]) -> None:
    items = read_truth(POPE, _lines(tmp_path / truth, [_label(1), _label(2)]))
    found = read_predictions(POPE, [_lines(tmp_path / answers, [_answer(2, **more), _answer(1, **more)])])
    with pytest.raises(
        BadInput, match="2 answers are said to be of another list than their questions, first popular-2"
    ):
        score(POPE, items, found)


@pytest.mark.parametrize(
    "row",
    [_label(1), {"question_id": 1, "text": "Is there a dog?\nAnswer the question using a single word or phrase."}],
)
def test_questions_are_no_answers(tmp_path: Path, row: dict[str, Any]) -> None:
    asked = [row, {**row, "question_id": 2}]
    with pytest.raises(BadInput, match=r"mine\.jsonl: field 'text' asks in each line: this is a file of questions"):
        read_predictions(POPE, [_lines(tmp_path / "mine.jsonl", asked)])
    answers = _lines(tmp_path / "mine.jsonl", [*asked, {**row, "question_id": 3, "text": "Yes"}])
    assert len(read_predictions(POPE, [answers])) == 3


def test_llavas_script_is_the_official_one() -> None:
    labels, answers = ["yes", "no", "no"], ["NO", "There is not", "None"]
    assert _outcome(labels, answers, "llava").metrics == _outcome(labels, answers).metrics


def test_ids_of_llavas_questions_go_by_their_place_in_the_list(tmp_path: Path) -> None:
    truth = _three(tmp_path / "coco")
    asked = [{"question_id": 100 + i, "image": f"{i % 2 + 1}.jpg", "text": "q", "category": _LISTS[i // 2]}
             for i in range(6)]  # fmt: skip
    questions = _lines(tmp_path / "questions.jsonl", asked)
    items = read_truth(POPE, truth, questions)
    assert [item.question_id for item in items] == [str(100 + i) for i in range(6)]
    assert [item.answers[0] for item in items] == ["no", "yes", "no", "yes", "yes", "yes"]
    with pytest.raises(BadInput, match="1 questions of category random, but 2 labels"):
        read_truth(POPE, truth, _lines(tmp_path / "few.jsonl", asked[:5]))
    asked[0]["image"] = "7.jpg"
    with pytest.raises(BadInput, match=r"question 100 of category adversarial is about 7\.jpg, its label about 1\.jpg"):
        read_truth(POPE, truth, _lines(tmp_path / "other.jsonl", asked))


def test_shards_keep_the_label_untranslated() -> None:
    details = {"category": "popular", "label": "no", "question_id": 7}
    item = Item.of(Question("popular-7", "Есть ли собака?", ("нет",), "popular", details=details), "key", "ru")
    assert score(RUSSIAN, [item], {"popular-7": "Нет"}).marks[0].points == 1.0
    assert score(RUSSIAN, [item], {"7": "Да"}).marks[0].points == 0.0


@pytest.mark.parametrize(
    ("labels", "answers", "message"),
    [
        ([_label(1), _label(2), _label(3)], [_answer(2)], "2 of 3 ids have no prediction, first 1, 3"),
        ([_label(1)], [_answer(1), _answer(9)], "1 of 2 ids are no questions of this set, first 9"),
        ([_label(1)], [_answer(1), _answer(1)], "1 ids occur more than once, first 1; where lists"),
        ([_label(1), _label(1)], [_answer(1)], "1 ids occur more than once, first 1; where lists"),
        ([_label(1)], [], "holds no answers"),
        ([], [_answer(1)], "holds no questions"),
        ([_label(1, category=["x"])], [_answer(1)], "truth.jsonl:1: field 'category': a text is wanted"),
        ([_label(1)], [_answer(1, category=7)], "answers.jsonl:1: field 'category': a text is wanted, not 7"),
        (
            [_label(1), _label(2, category="random"), _label(3)],
            [_answer(1)],
            "2 of 3 questions have no field 'category', first 1, 3",
        ),
        ([_label(1, "maybe")], [_answer(1)], "truth.jsonl:1: field 'label': 'maybe' is neither yes nor no"),
        ([_label(1)], [{"question_id": 1, "text": None}], "field 'text': a text is wanted, not null"),
        ([_label(1)], [{"question_id": 1, "answer": "yes"}], "field 'prediction': a text is wanted"),
        ([{"index": 1, "question": "q", "A": "a", "B": "b"}], [_answer(1)], "field 'question_id'"),
        (
            [_label(1, category="random"), _label(1, category="popular")],
            [_answer(1)],
            "2 of 2 ids have no prediction, first random-1, popular-1",
        ),
        ([_label(1)], [_answer(1), _answer(1, category="random")], "question 1 is answered twice, once as random-1"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: Any, answers: Any, message: str
) -> None:
    truth, given = _lines(tmp_path / "truth.jsonl", labels), _lines(tmp_path / "answers.jsonl", answers)
    assert run(["score", "pope", str(given), "--truth", str(truth)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parity
@pytest.mark.skipif(not PYTHON, reason=MISSING)
def test_parity_with_lmms_eval() -> None:
    there = "lmms_eval.tasks.pope.utils:pope_"
    with lmms_eval() as call:

        @settings(max_examples=100)
        @given(st.lists(st.tuples(_LABELS, _ANSWERS), min_size=1, max_size=12))
        def agrees(rows: list[tuple[str, str]]) -> None:
            found = _outcome(*map(list, zip(*rows, strict=True)), "lmms-eval").metrics["overall"]
            results = [
                call(f"{there}process_results", {"question_id": i, "answer": label}, [answer])["pope_accuracy"]
                for i, (label, answer) in enumerate(rows)
            ]
            for ours, theirs in (("accuracy",) * 2, ("precision",) * 2, ("recall",) * 2, ("f1", "f1_score"),
                                 ("yes_ratio",) * 2):  # fmt: skip
                assert found[ours] == pytest.approx(call(f"{there}aggregate_{theirs}", results))

        agrees()
