"""The readers of easy-VQA and of our own JSONL."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from shards.errors import BadInput
from shards.readers import READERS, ReaderOptions
from shards.readers.easy_vqa_questions import FORMS
from shards.sample import Sample

Rows = list[list[Any]]


@pytest.fixture
def easy_vqa(tmp_path: Path, make_png: Callable[..., bytes]) -> Callable[..., Path]:
    def make(rows: Rows, split: str = "train") -> Path:
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "questions.json").write_text(json.dumps(rows))
        for image_id in {row[2] for row in rows}:
            (tmp_path / split / "images" / f"{image_id}.png").write_bytes(make_png())
        return tmp_path

    return make


def read(name: str, **options: Any) -> list[Sample]:
    return samples(name, ReaderOptions(**options))


def samples(name: str, options: ReaderOptions) -> list[Sample]:
    return [draft.make() for draft in READERS[name].drafts(options)]


def refused(name: str, options: ReaderOptions) -> list[tuple[str, str]]:
    """(place, reason) of the rows that become no sample."""
    found = []
    for draft in READERS[name].drafts(options):
        try:
            draft.make()
        except BadInput as error:
            found.append((draft.place, str(error)))
    return found


def test_all_questions_of_an_image_in_one_dialogue(easy_vqa: Callable[..., Path]) -> None:
    folder = easy_vqa([["is no circle present?", "no", 7], ["what color is the circle?", "red", 7]])
    (sample,) = read("easy-vqa", input=folder)
    assert sample.key == "easyvqa-train-000007"
    assert [message.role for message in sample.messages] == ["user", "assistant", "user", "assistant"]
    assert sample.to_json()["messages"][0]["content"] == [
        {"type": "image"},
        {"type": "text", "text": "is no circle present?"},
    ]
    assert [(q.question_id, q.answers, q.type) for q in sample.questions] == [
        ("train-7-0", ("no",), "shape yes/no, negated"),
        ("train-7-1", ("red",), "color"),
    ]


def test_the_grammar_is_that_of_the_package() -> None:
    easy_vqa_package = pytest.importorskip("easy_vqa")
    questions, answers, _ = easy_vqa_package.get_train_questions()
    assert set(questions) == set(FORMS)
    assert len(FORMS) == 107
    assert all(answer in FORMS[question].answers for question, answer in zip(questions, answers, strict=True))
    assert Counter(form.type for form in FORMS.values()) == {
        "shape": 11,
        "color": 8,
        "shape yes/no": 12,
        "shape yes/no, negated": 12,
        "color yes/no": 32,
        "color yes/no, negated": 32,
    }


def test_installed_package_is_the_default() -> None:
    pytest.importorskip("easy_vqa")
    drafts = islice(READERS["easy-vqa"].drafts(ReaderOptions(split="test")), 3)
    assert [draft.make().key for draft in drafts] == [f"easyvqa-test-{i:06d}" for i in range(3)]


def test_captions_of_the_package_agree_with_all_answers() -> None:
    pytest.importorskip("easy_vqa")
    answers = {sample.id: sample for sample in read("easy-vqa", split="test")}
    for sample in read("easy-vqa-captions", split="test"):
        words = set(sample.questions[0].answers[0].split())
        for question in answers[sample.id.removesuffix("-caption")].questions:
            form = FORMS[question.question]
            if form.offered in words:
                assert (question.answers[0] == "yes") != form.negated
            elif form.offered is None:
                assert question.answers[0] in words or (form.asks == "shape" and "shape" in words)


@pytest.mark.parametrize(
    ("rows", "caption"),
    [
        ([["what is the red shape?", "circle"]], "a red circle"),
        ([["what color is the circle?", "teal"]], "a teal circle"),
        ([["what is the color of the shape?", "blue"]], "a blue shape"),
        ([["what shape is present?", "triangle"]], "a triangle"),
        ([["is there a red shape?", "yes"]], "a red shape"),
        ([["is there not a red shape?", "no"], ["is no circle present?", "no"]], "a red circle"),
        ([["is there a circle?", "no"], ["does the image not contain a triangle?", "yes"]], "a rectangle"),
        ([["is there a circle?", "no"], ["is no red shape present?", "yes"]], None),
    ],
)
def test_captions_conclude_from_answers(easy_vqa: Callable[..., Path], rows: Rows, caption: str | None) -> None:
    folder = easy_vqa([[*row, 3] for row in rows])
    samples = read("easy-vqa-captions", input=folder)
    if caption is None:
        assert samples == []
        return
    (sample,) = samples
    assert sample.key == "easyvqa-caption-train-000003"
    assert sample.questions[0].answers == (caption,)
    assert sample.questions[0].type == "caption"
    assert sample.to_json()["messages"][1]["content"] == [{"type": "text", "text": caption}]


def test_contradictory_answers(easy_vqa: Callable[..., Path]) -> None:
    circle = ["what shape is present?", "circle"]
    folder = easy_vqa([["is there a circle?", "no", 0], [*circle, 0], [*circle, 1]])
    ((place, reason),) = refused("easy-vqa-captions", ReaderOptions(input=folder))
    assert (place, "image 0 contradict" in reason) == ("train/questions.json: image 0", True)


def test_balance_makes_the_four_groups_equal(easy_vqa: Callable[..., Path]) -> None:
    counts = {
        ("is there a circle?", "yes"): 5,
        ("is there a circle?", "no"): 9,
        ("is no circle present?", "yes"): 12,
        ("is no circle present?", "no"): 4,
        ("is there a red shape?", "yes"): 3,
        ("is there a red shape?", "no"): 20,
        ("is no red shape present?", "yes"): 20,
        ("is no red shape present?", "no"): 3,
        ("what shape is present?", "circle"): 6,
    }
    rows = [[question, answer] for (question, answer), count in counts.items() for _ in range(count)]
    folder = easy_vqa([[*row, i] for i, row in enumerate(rows)])
    samples = read("easy-vqa", input=folder, balance=True)
    kept = Counter((sample.questions[0].type, sample.questions[0].answers[0]) for sample in samples)
    assert set(kept.items()) == {
        (("shape yes/no", "yes"), 4),
        (("shape yes/no", "no"), 4),
        (("shape yes/no, negated", "yes"), 4),
        (("shape yes/no, negated", "no"), 4),
        (("color yes/no", "yes"), 3),
        (("color yes/no", "no"), 3),
        (("color yes/no, negated", "yes"), 3),
        (("color yes/no, negated", "no"), 3),
        (("shape", "circle"), 6),
    }
    assert samples == read("easy-vqa", input=folder, balance=True)
    unthinned = {question.question_id for sample in read("easy-vqa", input=folder) for question in sample.questions}
    assert {question.question_id for sample in samples for question in sample.questions} < unthinned


def test_balance_is_for_training(easy_vqa: Callable[..., Path]) -> None:
    with pytest.raises(BadInput, match="balance"):
        read("easy-vqa", split="test", balance=True)


@pytest.mark.parametrize(
    "row",
    [
        ["is there a purple shape?", "yes", 0],
        ["is there a circle?", "red", 0],
        ["what shape is present?", "red", 0],
        ["is there a circle?", "yes", "../0"],
        ["is there a circle?", "yes", -1],
        ["is there a circle?", "yes", True],
        ["is there a circle?", "yes"],
        [["is there a circle?"], "yes", 0],
        7,
    ],
)
@pytest.mark.parametrize("name", ["easy-vqa", "easy-vqa-captions"])
def test_bad_row_is_refused_alone(easy_vqa: Callable[..., Path], name: str, row: Any) -> None:
    folder = easy_vqa([["is there a circle?", "yes", 0]])
    (folder / "train" / "questions.json").write_text(json.dumps([["is there a circle?", "yes", 0], row]))
    options = ReaderOptions(input=folder)
    assert [place for place, _ in refused(name, options)] == ["train/questions.json: row 1"]
    assert len(list(READERS[name].drafts(options))) == 2


def test_missing_image_split_and_limit(easy_vqa: Callable[..., Path]) -> None:
    folder = easy_vqa([["is there a circle?", "yes", 0]])
    (folder / "train" / "images" / "0.png").unlink()
    ((place, reason),) = refused("easy-vqa", ReaderOptions(input=folder))
    assert (place, "0.png" in reason) == ("train/questions.json: image 0", True)
    with pytest.raises(BadInput, match="no split"):
        read("easy-vqa", input=folder, split="val")
    with pytest.raises(BadInput, match="limit"):
        ReaderOptions(limit=0)


@pytest.fixture
def jsonl(tmp_path: Path, make_png: Callable[..., bytes]) -> Callable[..., ReaderOptions]:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "sub" / "a.png").write_bytes(make_png())
    (tmp_path / "secret.png").write_bytes(make_png())
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")

    def make(*lines: Any) -> ReaderOptions:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (tmp_path / "in.jsonl").write_text(text)
        return ReaderOptions(input=tmp_path / "in.jsonl", images=tmp_path / "images")

    return make


def line(sample: Sample, **fields: Any) -> dict[str, Any]:
    return {"key": sample.key, **sample.to_json(), **fields}


@pytest.mark.parametrize("questions", ["{}", "[", None])
def test_broken_easy_vqa_file_is_named(tmp_path: Path, questions: str | None) -> None:
    (tmp_path / "train").mkdir()
    if questions is not None:
        (tmp_path / "train" / "questions.json").write_text(questions)
    with pytest.raises(BadInput, match=r"train/questions\.json"):
        read("easy-vqa", input=tmp_path)


def test_jsonl_round_trip(
    jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample], make_png: Callable[..., bytes]
) -> None:
    with_image, without = make_sample(1), make_sample(2, with_image=False)
    options = jsonl(line(with_image, image="sub/a.png"), line(without))
    first, second = samples("jsonl", options)
    assert first.to_json() == with_image.to_json()
    assert (first.key, first.image, first.image_ext) == ("s-0001", make_png(), "png")
    assert second == without


@pytest.mark.parametrize(
    "image", ["../secret.png", "/etc/passwd", "link.png", "sub", "missing.png", "", 7, "a\0b", "x" * 5000]
)
def test_jsonl_image_stays_in_its_folder(
    jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample], image: Any
) -> None:
    options = jsonl(line(make_sample(1), image="sub/a.png"), line(make_sample(2), image=image))
    ((place, reason),) = refused("jsonl", options)
    assert (place, "image" in reason) == (f"{options.input}:2", True)


def test_jsonl_links_may_be_followed(
    jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample], make_png: Callable[..., bytes]
) -> None:
    options = replace(jsonl(line(make_sample(1), image="link.png")), follow_links=True)
    assert [sample.image for sample in samples("jsonl", options)] == [make_png()]


def test_jsonl_link_inside_the_folder_is_read(
    jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample], make_png: Callable[..., bytes]
) -> None:
    options = jsonl(line(make_sample(1), image="inside/a.png"), line(make_sample(2), image="again.png"))
    assert options.images is not None
    (options.images / "inside").symlink_to(options.images / "sub")
    (options.images / "again.png").symlink_to("inside/a.png")
    assert [sample.image for sample in samples("jsonl", options)] == [make_png()] * 2


def test_jsonl_linked_folder_and_pipe_are_refused(
    jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample]
) -> None:
    options = jsonl(line(make_sample(1), image="out/secret.png"), line(make_sample(2), image="pipe.png"))
    assert options.images is not None
    (options.images / "out").symlink_to(options.images.parent)
    os.mkfifo(options.images / "pipe.png")
    (_, leads_out), (_, no_file) = refused("jsonl", options)
    assert "link out of --images" in leads_out
    assert "is not in --images" in no_file


BAD_LINES = ["{", "[]", "7", '{"key": 7}', '{"key": "a"}', "[" * 100_000]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_jsonl_bad_line_is_named(
    jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample], bad: str
) -> None:
    options = jsonl(line(make_sample(1, with_image=False)), bad)
    assert [place for place, _ in refused("jsonl", options)] == [f"{options.input}:2"]


def test_jsonl_line_has_a_cap(jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample]) -> None:
    good = json.dumps(line(make_sample(1, with_image=False)))
    ((_, reason),) = refused("jsonl", jsonl(good + " " * 4 * 2**20))
    assert "a line longer" in reason


def test_jsonl_streams(jsonl: Callable[..., ReaderOptions], make_sample: Callable[..., Sample]) -> None:
    options = jsonl(line(make_sample(1, with_image=False)), "garbage")
    assert len(list(islice(READERS["jsonl"].drafts(options), 1))) == 1


def test_jsonl_needs_a_file(tmp_path: Path) -> None:
    for path in (None, tmp_path / "none", tmp_path):
        with pytest.raises(BadInput):
            read("jsonl", input=path)


@pytest.mark.parametrize("name", ["\ud800.png", "a/\udfff"])
def test_path_of_an_image_that_is_not_unicode(jsonl: Callable[..., ReaderOptions], name: str) -> None:
    options = jsonl(json.dumps({"key": "a", "image": name}))
    ((_, reason),) = refused("jsonl", options)
    assert "not valid Unicode" in reason


def test_easy_vqa_image_that_never_ends(easy_vqa: Callable[..., Path]) -> None:
    folder = easy_vqa([["is no circle present?", "no", 7]])
    (folder / "train" / "images" / "7.png").unlink()
    (folder / "train" / "images" / "7.png").symlink_to("/dev/zero")
    ((_, reason),) = refused("easy-vqa", ReaderOptions(input=folder))
    assert "7.png" in reason


@pytest.mark.parametrize("reader", ["llava", "alpaca", "mmbench", "hf-datasets"])
def test_file_that_never_ends(tmp_path: Path, reader: str) -> None:
    lang = {"lang": "en"} if reader == "hf-datasets" else {}
    images = {} if reader == "alpaca" else {"images": tmp_path}
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.parquet").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a plain file"):
        next(READERS[reader].drafts(ReaderOptions(input=folder, **lang, **images)))
