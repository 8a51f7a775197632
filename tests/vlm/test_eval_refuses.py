"""What ends an evaluation before a question is asked, and what it leaves: nothing; a disk that is full."""

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shards.build import build
from shards.dataset import ShardDataset
from shards.readers import Draft, Reader, ReaderOptions
from tests.eval_files import Told
from tests.vlm.told import eight, rotations, says

Ask = Callable[..., Told]


@pytest.fixture
def ask(vlm: Ask, model: Path, english: Path, tmp_path: Path) -> Ask:
    """`vlm eval demo` of the first samples, with more keys."""
    keys = [f"run={tmp_path / 'run'}", f"model.base={model}", f"eval.data={english}", "eval.limit=2"]
    return lambda *more, command="eval": vlm(command, "demo", *keys, "eval.max_new_tokens=2", *more)


@pytest.mark.parametrize(
    ("command", "package", "key", "told"),
    [
        ("eval", "openai", ["eval.engine=server", "eval.model=m"], 'asking a server needs openai, {}"ruvlm[server]"'),
        ("eval", "bitsandbytes", ["eval.quantize=4bit"], 'eval.quantize: 4bit needs bitsandbytes, {}"ruvlm[gpu]"'),
        ("flips", "bitsandbytes", ["eval.quantize=4bit"], 'eval.quantize: 4bit needs bitsandbytes, {}"ruvlm[gpu]"'),
        ("eval", "pymorphy3", ["eval.task=gqa-ru", "eval.scorer=official,russian", "eval.instruction=none"],
         'scorer russian: inflection needs pymorphy3, {}"ruvlm[eval]"'),
        ("eval", "", ["data.template=nosuch"], "data.template"),
        ("eval", "", ["eval.engine=server"], "eval.model is empty"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing(
    command: str, package: str, key: list[str], told: str, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        monkeypatch.setitem(sys.modules, package, None)
    code, out, said = ask(*key, command=command)
    *warned, line = said.splitlines()
    assert (code, out) == (2, "") and all("is it meant?" in each for each in warned)
    assert told.format("which is not installed: pip install ") in line
    assert not (tmp_path / "run").exists()


def test_a_part_that_has_begun_is_refused_with_the_same_words(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    assert ask("eval.quantize=4bit", "--part", "0/2")[0] == 0
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "vlm: eval.quantize: 4bit needs bitsandbytes" in ask("eval.quantize=4bit", "--part", "1/2")[2]


@pytest.mark.parametrize(
    ("reader", "task", "warned"),
    [("vqav2", "pope", True), ("vqav2", "vqav2", False), ("vqav2", "exact", False), ("own", "pope", False),
     ("gqa", "gqa-ru", False)],
)  # fmt: skip
def test_a_task_of_another_set_than_the_questions_is_said(
    reader: str, task: str, warned: bool, ask: Ask, english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = list(ShardDataset.open(english))[:2]
    drafts = [Draft(sample.key, partial(replace, sample)) for sample in samples]
    data = tmp_path / "data"
    build(Reader(reader, "t", "MIT", ("en",), lambda _: iter(drafts), "nothing"), ReaderOptions(split="test"), data)
    says(monkeypatch, lambda question: "yes")
    said = ask(f"eval.task={task}", f"eval.data={data}", "eval.instruction=none")[2]
    line = f"vlm: eval.task={task}, but {data} was read as vqav2; is it meant?\n"
    assert (line in said) == warned == ("was read as" in said)


def full(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_in_a_line_and_room_is_gone_on_from(
    number: int, ask: Ask, vlm: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = eight(tmp_path / "data", rotations), tmp_path / "run"
    folder, sent = run / "eval" / "test", tmp_path / "sent.tsv"
    says(monkeypatch, lambda question: "A")
    evaluate = partial(ask, "eval.task=mmbench", "eval.name=test", f"eval.data={data}", "eval.limit=0")
    commands: list[tuple[Callable[[], Told], Path, list[Path]]] = [
        (evaluate, folder, [folder / "result.json", folder / "settings.json"]),
        (lambda: vlm("submit", folder, "--out", sent), sent, [sent]),
        (lambda: vlm("report", run), run, [run / "report.html", run / "benchmark_results.json"]),
    ]
    for command, where, files in commands:
        with monkeypatch.context() as patched:
            full(patched, number)
            told = f"vlm: {where}: {os.strerror(number)}; make room and start the same command again\n"
            assert command() == (1, "", told)
        assert not [path for path in files if path.exists()] and not list(tmp_path.rglob("*.tmp"))
        assert command()[0] == 0 and all(path.exists() for path in files)
    assert json.loads((folder / "result.json").read_text())["n"] == 16


def test_another_fault_of_the_system_keeps_its_traceback(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, errno.EIO)
    says(monkeypatch, lambda question: "A")
    with pytest.raises(OSError, match="Input/output error"):
        ask()
