"""Folders of Hugging Face datasets: as save_to_disk writes them, as the hub gives them, and broken ones."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from shards.errors import BadInput
from shards.readers import Draft, ReaderOptions, find_reader
from shards.sample import Sample

Fields = dict[str, Any]
Turn = dict[str, str]

TURNS: list[Turn] = [{"from": "human", "value": "<image>\nЧто это?"}, {"from": "gpt", "value": "Кот."}]
CHAT: list[Turn] = [{"role": "user", "content": "Что это?"}, {"role": "assistant", "content": "Кот."}]


def table(rows: Sequence[Fields]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(list(rows))


def save_split(folder: Path, rows: Sequence[Fields], files: int = 1) -> Path:
    """The files that `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for i, name in enumerate(names):
        part = table(rows[i * len(rows) // files : (i + 1) * len(rows) // files])
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "81f2ba59", "_split": None}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}, "license": ""}))
    return folder


def save_parquet(path: Path, rows: Sequence[Fields]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table(rows), path)
    return path


def drafts(folder: Path | None, **options: Any) -> list[Draft]:
    return list(find_reader("hf-datasets").drafts(ReaderOptions(folder, **({"lang": "ru"} | options))))


def made(folder: Path, **options: Any) -> list[Sample]:
    found = drafts(folder, **options)
    assert [draft.make() for draft in found] == [draft.make() for draft in found]  # it may be called twice
    return [draft.make() for draft in found]


def told(sample: Sample) -> list[str]:
    return [f"{m.role}: " + "|".join(getattr(part, "text", "▣") for part in m.content) for m in sample.messages]


@pytest.fixture
def cell(make_png: Callable[..., bytes]) -> Callable[..., Fields]:
    """An image as `datasets` keeps it in a table."""
    return lambda red=0: {"bytes": make_png((red, 0, 0)), "path": f"{red}.png"}


def test_saved_dataset_in_the_order_of_its_state(tmp_path: Path, cell: Callable[..., Fields]) -> None:
    rows = [{"id": f"row {i}", "image": cell(i), "conversations": TURNS} for i in range(7)]
    folder = save_split(tmp_path / "set", rows, files=3)
    samples = made(folder)
    assert [sample.id for sample in samples] == [f"row {i}" for i in range(7)]
    assert [sample.key for sample in samples] == [f"hf-datasets-train-{i:09d}" for i in range(7)]
    assert [sample.image for sample in samples] == [cell(i)["bytes"] for i in range(7)]
    assert {(sample.lang, sample.source, sample.image_ext) for sample in samples} == {("ru", "hf-datasets", "png")}
    assert drafts(folder)[2].place == f"{folder}/data-00001-of-00003.arrow: row 1"
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert [sample.id for sample in made(folder)] == [f"row {i}" for i in (4, 5, 6, 2, 3, 0, 1)]


def test_split_of_a_saved_dict(tmp_path: Path) -> None:
    for split in ("train", "test.small"):
        save_split(tmp_path / split, [{"instruction": f"{split}?", "output": "да"}])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test.small"]}')
    assert told(made(tmp_path)[0])[0] == "user: train?"
    (sample,) = made(tmp_path, split="test.small")
    assert (told(sample)[0], sample.key) == ("user: test.small?", "hf-datasets-test-small-000000000")
    with pytest.raises(BadInput, match=r"no split 'val'; choose --split from train, test\.small"):
        drafts(tmp_path, split="val")


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        ("data/train-00000-of-00002-ab12cd34ef567890.parquet", "data/train-00001-of-00002-0123456789abcdef.parquet"),
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("train/0000.parquet", "train/0001.parquet"),
        ("data/train/a.parquet", "data/train/b.parquet"),
    ],
)
def test_parquet_files_of_the_hub(tmp_path: Path, names: tuple[str, str]) -> None:
    for i, name in enumerate(names):
        save_parquet(tmp_path / name, [{"id": f"row {i}", "messages": CHAT}])
    save_parquet(tmp_path / names[0].replace("train", "train_extra"), [{"id": "other", "messages": CHAT}])
    assert [sample.id for sample in made(tmp_path)] == ["row 0", "row 1"]
    with pytest.raises(BadInput, match="Parquet files of split 'validation'"):
        drafts(tmp_path, split="validation")


def test_every_form_of_columns(tmp_path: Path, cell: Callable[..., Fields]) -> None:
    image = cell()
    parts = [{"role": "user", "content": [{"type": "text", "text": "Кто?"}, {"type": "image", "text": None}]}]
    parts.append({"role": "assistant", "content": [{"type": "text", "text": "Кот."}]})
    forms: list[tuple[Fields, list[str]]] = [
        ({"conversations": TURNS, "image": image}, ["user: ▣|Что это?", "assistant: Кот."]),
        ({"messages": CHAT, "images": [image], "source": "coco"}, ["user: ▣|Что это?", "assistant: Кот."]),
        ({"messages": parts, "images": [image]}, ["user: Кто?|▣", "assistant: Кот."]),
        ({"messages": CHAT, "system": "Кратко."}, ["system: Кратко.", "user: Что это?", "assistant: Кот."]),
        ({"question": "Что?", "answer": "Кот", "image": image}, ["user: ▣|Что?", "assistant: Кот"]),
        ({"question": "Что?", "answers": ["пёс", "кот", "кот"], "image": image}, ["user: ▣|Что?", "assistant: кот"]),
        (
            {"question": "Что?", "answers": [{"answer": "да", "answer_id": 1}], "image": image},
            ["user: ▣|Что?", "assistant: да"],
        ),
        ({"question": "Что?", "answers": [], "image": image}, ["user: ▣|Что?"]),
        ({"question": "2+2?", "answer": "4"}, ["user: 2+2?", "assistant: 4"]),
        ({"instruction": "Скажи", "input": "да", "output": "Да."}, ["user: Скажи\nда", "assistant: Да."]),
        ({"image": image, "text": "Кот на диване."}, ["user: ▣", "assistant: Кот на диване."]),
        ({"image": image, "caption": "Кот.", "url": "http://a"}, ["user: ▣", "assistant: Кот."]),
    ]
    for i, (fields, expected) in enumerate(forms):
        (sample,) = made(save_split(tmp_path / str(i), [fields]))
        assert told(sample) == expected
        assert sample.image == (image["bytes"] if "▣" in "".join(expected) else None)


def test_questions_keep_their_ids_and_answers(tmp_path: Path, cell: Callable[..., Fields]) -> None:
    fields = {"question_id": 25, "question": "<image>\nЧто?", "answers": ["кот", "кошка"], "question_type": "what"}
    (sample,) = made(save_split(tmp_path / "a", [fields | {"image": cell()}]))
    assert sample.to_json()["questions"] == [
        {"question_id": "25", "question": "Что?", "answers": ["кот", "кошка"], "type": "what"}
    ]
    (sample,) = made(save_split(tmp_path / "b", [{"question": "Что?", "answer": "кот", "image": cell()}]))
    assert sample.questions[0].question_id == "0"
    assert sample.questions[0].answers == ("кот",)


def test_images_by_path(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    (tmp_path / "images/train2017").mkdir(parents=True)
    (tmp_path / "images/train2017/000000033471.jpg").write_bytes(make_png())
    for i, image in enumerate(("COCO_train2014_000000033471.jpg", {"bytes": None, "path": "000000033471.jpg"})):
        folder = save_split(tmp_path / str(i), [{"image": image, "conversations": TURNS}])
        (sample,) = made(folder, images=tmp_path / "images")
        assert sample.image == make_png()
        with pytest.raises(BadInput, match="--images") as caught:
            drafts(folder)[0].make()
        assert caught.value.kind == "image-missing"


def test_rows_without_an_image_among_others(tmp_path: Path, cell: Callable[..., Fields]) -> None:
    rows = [{"image": cell(), "messages": CHAT}, {"image": None, "messages": CHAT}]
    assert [told(sample)[0] for sample in made(save_split(tmp_path, rows))] == ["user: ▣|Что это?", "user: Что это?"]


BROKEN_ROWS: dict[str, tuple[Fields, str, str]] = {
    "two images": ({"messages": CHAT, "images": [{"path": "a"}, {"path": "b"}]}, "schema", "the row has 2 images"),
    "wrong type": ({"conversations": "hi"}, "schema", "'conversations': a list of turns"),
    "empty text": ({"instruction": "a", "output": ""}, "text", "field 'output': a non-empty text"),
    "number for a text": ({"question": "a", "answer": 4}, "schema", "field 'answer': a text is wanted"),
    "null question": ({"question": None, "answer": "a"}, "schema", "field 'question': a text is wanted"),
    "answers of a wrong type": ({"question": "a", "answers": "b"}, "schema", "'answers': a list is wanted"),
    "answer of a wrong type": ({"question": "a", "answers": [1]}, "schema", r"answers\[0\]: a text is wanted"),
    "question that is a marker": ({"question": "<image>", "answer": "b", "image": {"path": "a"}}, "text", "question"),
    "marker without image": ({"conversations": TURNS}, "schema", "1 times <image> and the row has no image"),
    "marker in a caption": ({"text": "<image>", "image": {"path": "a"}}, "schema", "in the words of the assistant"),
    "caption without image": ({"text": "Кот", "image": None}, "image-missing", "the row has no image"),
    "corrupt image": ({"text": "a", "image": {"bytes": b"\x89PNG nothing", "path": ""}}, "image", "not a JPEG, PNG"),
    "gif": ({"text": "a", "image": {"bytes": b"GIF89a", "path": ""}}, "image", "the image is a gif"),
    "path out of the folder": (
        {"text": "a", "image": {"bytes": None, "path": "../secret.png"}},
        "image-missing",
        "lies outside --images",
    ),
    "picture inside a message": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]},
        "schema",
        "an image inside a message",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_broken_row_is_rejected(tmp_path: Path, case: str) -> None:
    fields, kind, message = BROKEN_ROWS[case]
    (tmp_path / "images").mkdir()
    (draft,) = drafts(save_split(tmp_path / "set", [fields]), images=tmp_path / "images")
    assert draft.place == f"{tmp_path}/set/data-00000-of-00001.arrow: row 1"
    with pytest.raises(BadInput, match=message) as caught:
        draft.make()
    assert caught.value.kind == kind and "\n" not in str(caught.value)


def refused(folder: Path | None, message: str, **options: Any) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        drafts(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"question": "a", "answer": "b", "choices": ["c"]},
        {"question": "a", "answer": "b", "image_id": 5},
        {"conversations": TURNS, "messages": CHAT},
        {"text": "a"},
    ],
)
def test_unknown_columns_are_named(tmp_path: Path, columns: Fields) -> None:
    refused(
        save_split(tmp_path, [columns]), f"columns {', '.join(columns)} are of no known form .conversations; messages;"
    )


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "a/../../b", "", 7, None, "a\0b", "\ud800"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: Any) -> None:
    save_split(tmp_path / "set", [{"text": "a", "image": None}])
    (tmp_path / "secret.arrow").write_bytes((tmp_path / "set/data-00000-of-00001.arrow").read_bytes())
    (tmp_path / "set/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    refused(tmp_path / "set", "is no name of a file in it")
    refused(tmp_path / "set", "--split '../set'", split="../set")


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save_split(tmp_path / "set", [{"question": "a", "answer": "b"}])
    (folder / "data-00000-of-00001.arrow").rename(tmp_path / "secret.arrow")
    (folder / "data-00000-of-00001.arrow").symlink_to(tmp_path / "secret.arrow")
    refused(folder, "a link out of its folder")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a list '_data_files' is wanted"),
        ('{"_data_files": [{"filename": "data-00000-of-00001.arrow", "skip": 1}]}', "save the dataset again"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"gone\.arrow: cannot be read"),
    ],
)
def test_broken_state_is_refused(tmp_path: Path, state: str, message: str) -> None:
    save_split(tmp_path, [{"question": "a", "answer": "b"}])
    (tmp_path / "state.json").write_text(state)
    refused(tmp_path, message)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    arrow = save_split(tmp_path / "a", [{"question": "a", "answer": "b"}]) / "data-00000-of-00001.arrow"
    whole = arrow.read_bytes()
    for damaged in (whole[:-8], whole[: len(whole) // 2], b""):
        arrow.write_bytes(damaged)
        refused(tmp_path / "a", "not a whole Arrow stream")
    for i in (0, 2):
        save_parquet(tmp_path / f"b/train-{i:05d}-of-00003.parquet", [{"question": "a", "answer": "b"}])
    refused(tmp_path / "b", "2 of 3 Parquet parts of the split are there")
    save_parquet(tmp_path / "c/train-00000-of-00002.parquet", [{"question": "a", "answer": "b"}])
    save_parquet(tmp_path / "c/train-00001-of-00002.parquet", [{"messages": CHAT}])
    refused(tmp_path / "c", "train-00001-of-00002.parquet: its columns are not those of the files before it")
    (tmp_path / "c/train-00000-of-00002.parquet").write_bytes(b"PAR1")
    refused(tmp_path / "c", "not a readable Parquet file")
    refused(tmp_path / "none", "none: cannot be read")
    refused(None, "give the folder of the dataset")
    refused(tmp_path, "Parquet files of split 'train'")
    refused(tmp_path / "b", "give it with --lang", lang=None)


def test_what_datasets_itself_saves(tmp_path: Path, cell: Callable[..., Fields]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    text = datasets.Value("string")
    features = datasets.Features(
        {"id": datasets.Value("int64"), "image": datasets.Image(), "messages": [{"role": text, "content": text}]}
    )
    rows = {"id": [*range(5)], "image": [cell(i) for i in range(5)], "messages": [CHAT] * 5}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=whole, test=whole.select([3, 1])).save_to_disk(
        tmp_path / "disk", num_shards={"train": 2, "test": 1}
    )
    (tmp_path / "hub/data").mkdir(parents=True)
    whole.to_parquet(tmp_path / "hub/data/train-00000-of-00001.parquet")
    for folder in ("disk", "hub"):
        samples = made(tmp_path / folder)
        assert [(sample.id, sample.image) for sample in samples] == [(str(i), cell(i)["bytes"]) for i in range(5)]
        assert told(samples[0]) == ["user: ▣|Что это?", "assistant: Кот."]
    assert [sample.id for sample in made(tmp_path / "disk", split="test")] == ["3", "1"]
