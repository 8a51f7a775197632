"""`vlm status`: the state of runs and their problems, from files that may be torn or hostile."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launch.status
from launch.cli import run as vlm
from launch.monitor.outputs import _count_rows
from launch.monitor.runs import RunStatus, collect
from shards.files import write_manifest
from vlm.events import iterate_events

NOW = 1_700_000_000.0
MakeRun = Callable[..., Path]


def event(kind: str, age: float, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": NOW - age, **fields}


def steps(first: int, last: int, seconds: float, age: float) -> list[dict[str, Any]]:
    """Step events; the last one is `age` seconds old."""
    return [
        event(
            "step",
            age + (last - i) * seconds,
            step=i,
            loss=4 / i,
            grad_norm=0.5,
            lr=2e-4,
            tokens=1000,
            seconds=seconds,
            data_wait_seconds=0.01,
            tokens_per_second=1000 / seconds,
        )
        for i in range(first, last + 1)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write RUN with events, one heartbeat age a rank, checkpoints by step, and a recipe."""

    def make(
        path: str,
        events: list[dict[str, Any]],
        heartbeats: tuple[float, ...] = (),
        checkpoints: tuple[int, ...] = (),
        name: str = "test",
    ) -> Path:
        run = tmp_path / "runs" / path
        (run / "heartbeat").mkdir(parents=True)
        (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        (run / "recipe.yaml").write_text(json.dumps({"name": name, "checkpoint": {"every": 10}}))
        for rank, age in enumerate(heartbeats):
            beat = {"rank": rank, "host": f"gpu{rank}", "step": 20, "time": NOW - age}
            (run / "heartbeat" / f"rank-{rank:03d}.json").write_text(json.dumps(beat))
        for step in checkpoints:
            folder = run / "checkpoints" / f"step-{step:08d}"
            (folder / "adapter").mkdir(parents=True)
            (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"w" * step)
            write_manifest(folder)
        return run

    return make


START = event("start", 100, step=0, steps=100, ranks=2)


def only(folder: Path) -> RunStatus:
    (found,) = collect(folder, NOW)
    return found


@pytest.mark.parametrize(
    ("events", "heartbeats", "state", "problem"),
    [
        ([START, *steps(1, 20, 1, 2)], (2, 3), "running", ""),
        ([START, *steps(1, 20, 1, 2)], (2, 40), "silent", "rank 1 on gpu1 silent for 40 s, last at step 20"),
        ([START, *steps(1, 20, 1, 40)], (40, 41), "silent", "(2 of 2 ranks)"),
        # five steps of 20 s are longer than 30 s
        ([event("start", 900, step=0, steps=100, ranks=2), *steps(1, 20, 20, 95)], (95, 90), "running", ""),
        ([event("start", 900, step=0, steps=100, ranks=2), *steps(1, 20, 20, 95)], (105, 90), "silent", "rank 0"),
        # a rank without any heartbeat is as old as the start; the first step may take its time
        ([START], (), "running", ""),
        ([event("start", 400, step=0, steps=100, ranks=2), *steps(1, 20, 1, 2)], (2,), "silent", "rank 1 silent"),
        ([event("start", 400, step=0, steps=100, ranks=2)], (), "silent", "rank 0 silent for 6 min"),
        # heartbeats of before the restart, and of ranks that are no more
        ([START, *steps(1, 20, 1, 50), event("start", 5, step=10, steps=100, ranks=1)], (60, 70), "running", ""),
        ([*steps(1, 20, 1, 50)], (), "silent", "no event for 50 s and no heartbeat"),
        ([START, *steps(1, 20, 1, 50), event("stop", 50, step=20)], (50, 50), "stopped", "stopped on request"),
        ([START, *steps(1, 20, 1, 50), event("end", 50, step=20)], (50, 50), "finished", ""),
        ([START, *steps(1, 20, 1, 2), event("checkpoint", 1, step=20)], (2, 3), "running", ""),
    ],
)
def test_state(
    make_run: MakeRun, events: list[dict[str, Any]], heartbeats: tuple[float, ...], state: str, problem: str
) -> None:
    found = only(make_run("a", events, heartbeats, (20,)))
    assert (found.stage, found.state) == ("train", state)
    assert problem in " ".join(found.problems) and bool(problem) == bool(found.problems), found.problems


def test_figures_are_those_of_the_newest_start(make_run: MakeRun) -> None:
    again = [START, *steps(1, 20, 1, 50), event("start", 40, step=10, steps=100, ranks=1), *steps(11, 16, 2, 1)]
    found = only(make_run("a", again, (1,), (10,)))
    assert (found.run, found.name, found.step, found.steps, found.restarts) == (".", "test", 16, 100, 1)
    assert found.loss == 4 / 16 and found.grad_norm == 0.5 and found.learning_rate == 2e-4
    assert found.tokens_per_second == pytest.approx(26_000 / 32)
    assert found.step_seconds == 1 and found.eta_seconds == 84
    assert found.free_bytes and found.problems == ()


def test_only_checkpoints_that_verify_count(make_run: MakeRun) -> None:
    run = make_run("a", [START, *steps(1, 31, 1, 1)], (1, 1), (10, 20, 30))
    unfinished = run / "checkpoints" / "step-00000031"
    unfinished.mkdir()
    newest = only(run).checkpoint
    assert newest and newest.step == 30 and newest.bytes > 30
    (run / "checkpoints" / "step-00000030" / "adapter" / "adapter_model.safetensors").write_bytes(b"W" * 30)
    found = only(run)
    assert found.checkpoint and found.checkpoint.step == 20
    assert [c.state for c in found.checkpoints] == ["unfinished", "damaged", "whole", "not checked"]
    assert found.problems == ("checkpoint of step 30 is damaged: adapter/adapter_model.safetensors: digest differs",)
    assert found.to_json(found.checkpoint.time + 5)["checkpoint"]["age_seconds"] == 5


def test_problems_of_progress(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("a", [START, *steps(1, 31, 1, 1)], (1, 1), (10,))
    assert only(run).problems == ("no whole checkpoint for 21 steps, one is due every 10",)
    with open(run / "events.jsonl", "a") as handle:
        handle.write('{"event": "step", "step": 32, "loss": NaN, "time": 1699999999.5}\n')
    assert "the loss of step 32 is not a finite number" in only(run).problems
    monkeypatch.setattr("launch.monitor.runs.shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    assert any(problem.startswith("100 B free on the disk, a checkpoint takes") for problem in only(run).problems)
    stuck = make_run("b", [START, START, START, *steps(1, 4, 1, 1)], (1, 1))
    assert only(stuck).problems == ("the last 3 starts were all at step 0: no checkpoint in between",)


def test_what_training_tells_is_shown_the_gravest_first(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    told = [
        event("skipped", 9, step=18, sample="ru/7", reason="not a JPEG"),
        event("skipped", 8, step=19, sample="ru/8", reason="not a PNG\x1b[2J"),
        event("spike", 7, step=19, loss=9.5, sigmas=7.2, samples=["a"]),
        event("straggler", 6, step=20, rank=3, speed=0.61),
        event("heldout", 5, step=20, loss=1.25, seconds=1),
        event("nonfinite", 4, step=20, in_a_row=2, loss=None, grad_norm=None, samples=["ru/1", "ru/2"]),
        event("hang", 3, silent_ranks=[1]),
    ]
    run = make_run("a", [START, *steps(1, 20, 1, 9), *told], (2, 2), (20,))
    found = only(run)
    assert found.problems == (
        "the run hung and was ended; no stack from rank 1; see logs/stack-rank-*.txt",
        "step 20: loss or gradient not finite, no weight changed (2 in a row); samples ru/1, ru/2",
        "step 20: rank 3 runs at 61 % of the median rank's speed",
        "step 19: loss 9.5 is 7.2 sigmas above the steps before",
        "step 19: sample ru/8 left out: not a PNG\ufffd[2J (2 of this kind since the start)",
    )
    assert found.heldout_loss == 1.25 and [i.kind for i in found.incidents][:3] == ["hang", "nonfinite", "heldout"]
    # of what is over, the events alone tell: passing troubles fifty steps later, all of them after a restart
    with open(run / "events.jsonl", "a") as handle:
        handle.writelines(json.dumps(e) + "\n" for e in steps(21, 80, 1, 2))
    assert [p.split(":")[0] for p in only(run).problems if "checkpoint" not in p] == [found.problems[0], "step 19"]
    with open(run / "events.jsonl", "a") as handle:
        handle.write(json.dumps(event("start", 1, step=20, steps=100, ranks=2)) + "\n")
    assert only(run).problems == () and len(only(run).incidents) == len(told)
    assert vlm(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["incidents"][1]["kind"] == "nonfinite"


def test_events_of_garbage_are_told_too(make_run: MakeRun) -> None:
    kinds = ("hang", "nonfinite", "damaged", "straggler", "spike", "skipped", "warning", "heldout")
    odd: list[Any] = [None, [1, {}], "x" * 10_000, {"a": 1}, float("nan"), True]
    names = (
        "step",
        "silent_ranks",
        "samples",
        "speed",
        "rank",
        "loss",
        "sigmas",
        "reason",
        "sample",
        "text",
        "problem",
    )
    events = [event(kind, 1, **dict.fromkeys(names, value)) for kind in kinds for value in odd]
    found = only(make_run("a", [START, *events], (2, 2)))
    assert len(found.problems) == 7 and all(len(p) < 300 and p.isprintable() for p in found.problems)
    json.dumps(found.to_json(NOW))


def test_evaluations(make_run: MakeRun) -> None:
    run = make_run("a", [START, event("end", 5, step=1)])
    parts = run / "eval" / "ru" / "parts"
    parts.mkdir(parents=True)
    row = {"question_id": "1", "key": "k", "prediction": 'says "question_id": 7'}
    (parts / "part-00000-of-00002.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (parts / "part-00001-of-00002.journal").write_text(json.dumps({"key": "k", "rows": [row, row]}) + "\n" + '{"key')
    for path in parts.iterdir():
        os.utime(path, (NOW - 700, NOW - 700))
    found = only(run)
    (ru,) = found.evaluations
    assert (ru.name, ru.parts_done, ru.parts, ru.answered, ru.questions, ru.score) == ("ru", 1, 2, 5, None, None)
    assert (found.stage, found.state) == ("eval", "silent")
    assert found.problems == ("evaluation ru: 1 of 2 parts done, nothing written for 11 min",)
    (run / "eval" / "ru" / "result.json").write_text('{"score": 0.75, "n": 6}')
    found = only(run)
    assert (found.stage, found.state, found.problems) == ("eval", "finished", ())
    assert (found.evaluations[0].score, found.evaluations[0].questions) == (0.75, 6)
    (run / "merged").mkdir()
    (run / "merged" / ".unfinished").touch()
    assert (only(run).stage, only(run).state) == ("merge", "running")


def test_answers_are_counted_across_blocks(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("a", [START, event("end", 5, step=1)])
    (run / "eval" / "ru" / "parts").mkdir(parents=True)
    (run / "eval" / "ru" / "parts" / "part-00000-of-00001.jsonl").write_text('{"question_id": "1"}\n' * 50)
    for block in (1, 7, 16):
        monkeypatch.setattr("launch.monitor.outputs._CHUNK", block)
        _count_rows.cache_clear()
        assert only(run).evaluations[0].answered == 50


def test_of_a_long_file_the_end_is_read(make_run: MakeRun) -> None:
    run = make_run("a", [START, *steps(1, 50, 1, 1)])
    size = (run / "events.jsonl").stat().st_size
    assert next(e["event"] for e in iterate_events(run, size)) == "start"
    assert len(list(iterate_events(run, size - 1))) == 50
    last = [e["step"] for e in iterate_events(run, 1000)]
    assert last == list(range(last[0], 51)) and 1 < len(last) < 10


def test_runs_are_found_at_any_depth_problems_first(make_run: MakeRun) -> None:
    top = make_run("top", [START, *steps(1, 20, 1, 2)], (2, 2))
    make_run("top/base/questions", [START, event("end", 1, step=1)])
    make_run("top/base/tower", [START, event("stop", 1, step=1)])
    make_run("top/checkpoints/none", [START])
    assert [(s.run, s.state) for s in collect(top, NOW)] == [
        ("base/tower", "stopped"),
        (".", "running"),
        ("base/questions", "finished"),
    ]


HOSTILE = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["event", "step", "time", "steps", "ranks", "loss", "seconds", "rank", "score", "n", "name"]
                ),
                inner | st.sampled_from(["start", "step", "end"]),
                max_size=6,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=60, deadline=None)
@given(contents=st.tuples(*[HOSTILE] * 5), kind=st.sampled_from(["start", "step", "end"]))
def test_garbage_never_ends_it(
    contents: tuple[bytes, ...], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("run")
    names = ("heartbeat/rank-000.json", "recipe.yaml", "eval/x/result.json", "checkpoints/step-00000001/MANIFEST.json")
    (run / "events.jsonl").write_bytes(b'{"event": "%s", "step": 1}\n%s\n' % (kind.encode(), contents[0]))
    for name, content in zip(names, contents[1:], strict=True):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    json.dumps(only(run).to_json(NOW), allow_nan=False).encode()


def test_hostile_files_are_read_within_bounds_and_nothing_outside(make_run: MakeRun, tmp_path: Path) -> None:
    outside = make_run("../outside", [START], (1,), (7,), name="secret")
    run = make_run("a", [START, *steps(1, 20, 1, 2)], (2, 2))
    lines = b"[" * 200_000 + b"\n" + b'{"event": "step", "step": ' + b"9" * 100_000 + b"}\n\xff\x00\n{}\n"
    with open(run / "events.jsonl", "ab") as handle:
        handle.write(lines)
    (run / "recipe.yaml").unlink()
    (run / "recipe.yaml").symlink_to(outside / "recipe.yaml")
    (run / "checkpoints").symlink_to(outside / "checkpoints")
    os.mkfifo(run / "heartbeat" / "rank-002.json")
    (run / "loop").symlink_to(run)
    (run.parent / "linked").symlink_to(outside)
    found = only(run.parent)
    assert (found.run, found.name, found.step, found.state, found.checkpoints) == ("a", "a", 20, "running", ())
    os.mkfifo(tmp_path / "runs" / "a" / "pipe")
    (run / "events.jsonl").unlink()
    os.mkfifo(run / "events.jsonl")
    assert collect(run, NOW) == []


def test_command(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("a", [START, *steps(1, 20, 1, 2)], (2, 2), (20,), name="red \x1b[31m [bold]x")
    assert vlm(["status", str(run.parent)]) == 0
    shown = capsys.readouterr().out
    # the hand-made times are far from now: both ranks are silent
    assert "a (red \ufffd[31m [bold]x)" in shown and "\x1b" not in shown and "20/100" in shown and "silent" in shown
    assert vlm(["status", str(run), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["step"], found["loss"], found["checkpoint"]["step"]) == (20, 0.2, 20)
    for arguments, message in (
        ([str(tmp_path / "none")], "no such folder"),
        ([str(run / "heartbeat")], "no run in it"),
        ([str(run), "--json", "--watch"], "give one of them"),
    ):
        assert vlm(["status", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_watch_draws_again_until_interrupted(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("a", [START, *steps(1, 20, 1, 2)])
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        with open(run / "events.jsonl", "a") as handle:
            handle.write(json.dumps(steps(21, 21, 1, 1)[0]) + "\n")

    monkeypatch.setattr(launch.status.time, "sleep", pause)
    assert vlm(["status", str(run), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("20/100") < shown.index("21/100") and pauses == [2, 2]


def test_status_loads_no_torch(make_run: MakeRun) -> None:
    run = make_run("a", [START])
    code = (
        "import sys; from launch.cli import run; assert run(['status', sys.argv[1]]) == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'submitit', 'omegaconf', 'jinja2'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
