"""Alpaca and ShareGPT in their real schemas, and what is refused of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from shards.errors import BadInput
from shards.readers import ReaderOptions, find_reader
from shards.sample import Sample

Fields = dict[str, Any]

ALPACA: list[Fields] = [
    {
        "instruction": "Give three tips for staying healthy.",
        "input": "",
        "output": "1. Eat a balanced diet.\n2. Exercise.\n3. Sleep.",
        "text": "Below is an instruction …",
    },
    {"instruction": "Переведи на английский.", "input": "Кот спит.", "output": "The cat is asleep.", "id": 7},
    # LLaMA-Factory's form
    {
        "instruction": "And of Italy?",
        "input": None,
        "output": "Rome.",
        "system": "Answer in one word.",
        "history": [["What is the capital of France?", "Paris."], ["Of Spain?", "Madrid."]],
    },
]
ALPACA_TOLD = [
    ["user: Give three tips for staying healthy.", "assistant: 1. Eat a balanced diet.\n2. Exercise.\n3. Sleep."],
    ["user: Переведи на английский.\nКот спит.", "assistant: The cat is asleep."],
    [
        "system: Answer in one word.",
        "user: What is the capital of France?",
        "assistant: Paris.",
        "user: Of Spain?",
        "assistant: Madrid.",
        "user: And of Italy?",
        "assistant: Rome.",
    ],
]
SHAREGPT: list[Fields] = [
    {
        "id": "QWJhYvA_0",
        "conversations": [
            {"from": "human", "value": "Как отсортировать список?\n```python\nx = [2, 1]\n```"},
            {"from": "gpt", "value": "`x.sort()`"},
            {"from": "human", "value": "Thanks"},
            {"from": "gpt", "value": "Any time."},
        ],
    },
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
            {"role": "assistant", "content": "4", "weight": 1},
        ],
        "system": "The dialogue has its own.",
    },
    {
        "id": "i6IyJda_0",
        "conversations": [
            {"from": "gpt", "value": "dropped"},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
        ],
        "system": "Будь вежлив.",
        "tools": "",
    },
]
SHAREGPT_TOLD = [
    [
        "user: Как отсортировать список?\n```python\nx = [2, 1]\n```",
        "assistant: `x.sort()`",
        "user: Thanks",
        "assistant: Any time.",
    ],
    ["system: Be brief.", "user: 2+2?", "assistant: 4"],
    ["system: Будь вежлив.", "user: Hi", "assistant: Hello"],
]


def saved(path: Path, rows: list[Any]) -> Path:
    """The rows as JSON, JSON lines or Parquet, by the suffix."""
    if path.suffix == ".parquet":
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]")
    return path


def made(reader: str, path: Path, **options: Any) -> list[Sample]:
    drafts = list(find_reader(reader).drafts(ReaderOptions(path, **options)))
    assert [draft.make() for draft in drafts] == [draft.make() for draft in drafts]  # it may be called twice
    return [draft.make() for draft in drafts]


def told(sample: Sample) -> list[str]:
    return [f"{m.role}: " + "|".join(getattr(part, "text", "▣") for part in m.content) for m in sample.messages]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("reader", "rows", "expected"), [("alpaca", ALPACA, ALPACA_TOLD), ("sharegpt", SHAREGPT, SHAREGPT_TOLD)]
)
def test_every_row_comes_through(
    tmp_path: Path, reader: str, rows: list[Fields], expected: list[list[str]], suffix: str
) -> None:
    samples = made(reader, saved(tmp_path / f"set.{suffix}", rows), split="test")
    assert [told(sample) for sample in samples] == expected
    assert [sample.key for sample in samples] == [f"{reader}-test-{i:09d}" for i in range(3)]
    assert [sample.id for sample in samples] == [str(row.get("id", i)) for i, row in enumerate(rows)]
    assert {(sample.lang, sample.source, sample.image) for sample in samples} == {("en", reader, None)}


def test_parquet_of_one_form(tmp_path: Path) -> None:
    assert [told(s) for s in made("alpaca", saved(tmp_path / "a.parquet", ALPACA), lang="ru")] == ALPACA_TOLD
    samples = made("sharegpt", saved(tmp_path / "s.parquet", [SHAREGPT[0], SHAREGPT[2]]), lang="ru")
    assert [told(sample) for sample in samples] == [SHAREGPT_TOLD[0], SHAREGPT_TOLD[2]]
    assert {sample.lang for sample in samples} == {"ru"}


def alpaca(**fields: Any) -> Fields:
    given = {"instruction": "Say hi.", "input": "", "output": "Hi."} | fields
    return {name: value for name, value in given.items() if value is not ...}


def turns(*texts: Any) -> Fields:
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}


BROKEN = {
    "alpaca": {
        "no object": ("Say hi.", "schema", "an object is wanted"),
        "field missing": (alpaca(output=...), "schema", "the field 'output' is missing"),
        "wrong type": (alpaca(instruction=["Say hi."]), "schema", "field 'instruction': a text is wanted"),
        "wrong type of input": (alpaca(input=0), "schema", "field 'input': a text is wanted"),
        "empty output": (alpaca(output=" "), "text", "field 'output': a non-empty text"),
        "history of a wrong type": (alpaca(history=["a", "b"]), "schema", r"history\[0\]: a question and an answer"),
        "empty history": (alpaca(history=[["a", ""]]), "text", r"history\[0\]: an empty text"),
        "system of a wrong type": (alpaca(system={}), "schema", "system: a text is wanted"),
        "NUL": (alpaca(input="\0"), "text", "field 'input': NUL"),
        "image": (alpaca(images=["a.jpg"]), "schema", "the row names an image"),
        "marker": (alpaca(input="<image>"), "schema", "1 times <image> and the row has no image"),
        "marker in the answer": (alpaca(output="a <image>"), "schema", "<image> in the words of the assistant"),
        "marker in the system text": (alpaca(system="a <image>"), "schema", "<image> in the words of the system"),
    },
    "sharegpt": {
        "no object": (3, "schema", "an object is wanted"),
        "field missing": (
            {"id": "1", "text": "x"},
            "schema",
            "one of the fields 'conversations' and 'messages' is wanted",
        ),
        "both fields": (turns("a", "b") | {"messages": []}, "schema", "'messages' is wanted, not both"),
        "wrong type": ({"conversations": 5}, "schema", "field 'conversations': a list of turns"),
        "wrong type of text": (turns("a", {"x": 1}), "schema", r"conversations\[1\]: a text is wanted"),
        "empty": (turns("a", ""), "text", r"conversations\[1\]: an empty text"),
        "no turns": (turns(), "schema", "ends with the assistant"),
        "an answer alone": ({"messages": [{"role": "assistant", "content": "a"}]}, "schema", "ends with the assistant"),
        "unknown role": ({"messages": [{"role": "tool", "content": "a"}]}, "schema", "role 'tool' is none of"),
        "role of a wrong type": ({"messages": [{"role": ["user"], "content": "a"}]}, "schema", "role .* is none of"),
        "tools": (turns("a", "b") | {"tools": "[{}]"}, "schema", "field 'tools'"),
        "image": (turns("<image>", "b") | {"image": "a.jpg"}, "schema", "use --reader llava"),
        "marker": (turns("see <image>", "b"), "schema", "1 times <image> and the row has no image"),
        "part of an unknown type": (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "schema",
            r"messages\[0\]: a part of type text or image",
        ),
    },
}


@pytest.mark.parametrize(("reader", "case"), [(reader, case) for reader in BROKEN for case in BROKEN[reader]])
def test_broken_row_is_rejected(tmp_path: Path, reader: str, case: str) -> None:
    given, kind, message = BROKEN[reader][case]
    good = alpaca() if reader == "alpaca" else turns("a", "b")
    path = saved(tmp_path / "set.json", [good, given])
    fine, broken = find_reader(reader).drafts(ReaderOptions(path))
    assert fine.make().id == "0"
    assert broken.place == f"{path}: row 2"
    with pytest.raises(BadInput, match=message) as caught:
        broken.make()
    assert caught.value.kind == kind and "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", ["alpaca", "sharegpt"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], r"set\.json: "),
        (lambda whole: whole + whole, "something follows its end"),
        (lambda whole: whole.replace(b"]", b', {"a": NaN}]'), "is not valid JSON"),
        (lambda whole: b"PAR1" + whole, "not a readable Parquet file"),
        (lambda whole: whole.replace(b"a", b"\xe0"), "not UTF-8"),
    ],
)
def test_broken_set_is_refused_in_one_line(
    tmp_path: Path, reader: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = saved(tmp_path / "set.json", ALPACA[:2] if reader == "alpaca" else SHAREGPT)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=message) as caught:
        list(find_reader(reader).drafts(ReaderOptions(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", ["alpaca", "sharegpt"])
def test_options_without_use_are_refused(tmp_path: Path, reader: str) -> None:
    with pytest.raises(BadInput, match=f"reader {reader}: give the JSON"):
        list(find_reader(reader).drafts(ReaderOptions()))
    with pytest.raises(BadInput, match="has no use for --images"):
        find_reader(reader).drafts(ReaderOptions(tmp_path, tmp_path))
