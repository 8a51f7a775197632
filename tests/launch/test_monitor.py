"""`vlm monitor`: pages that escape, metrics that Prometheus takes, nothing outside the folder, loopback only."""

import importlib.util
import json
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from launch.cli import run as vlm
from launch.monitor import snapshot
from launch.monitor.metrics import exposition
from launch.monitor.runs import collect
from launch.monitor.server import application, listen, server
from shards.errors import BadInput
from shards.files import write_manifest

NOW = 1_700_000_000.0
NAME = "<script>alert(1)</script>"
EVENTS = [
    {"event": "start", "time": NOW - 30, "step": 0, "steps": 100, "ranks": 1},
    {"event": "step", "time": NOW - 20, "step": 1, "loss": 4.0, "tokens": 10, "seconds": 2, "tokens_per_second": 5},
    {"event": "step", "time": NOW - 18, "step": 2, "loss": 2.5, "grad_norm": 0.5, "lr": 1e-4, "tokens": 10,
     "seconds": 2, "data_wait_seconds": 0.25, "tokens_per_second": 5},
]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one run of a hostile name, and a secret outside it."""
    run = tmp_path / "runs" / 'a"b'
    (run / "heartbeat").mkdir(parents=True)
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in EVENTS))
    (run / "recipe.yaml").write_text(json.dumps({"name": NAME}))
    (run / "heartbeat" / "rank-000.json").write_text(json.dumps({"rank": 0, "host": NAME, "step": 2, "time": NOW - 17}))
    checkpoint = run / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"w" * 7)
    write_manifest(checkpoint)
    (checkpoint / "weights").write_bytes(b"W" * 7)
    parts = run / "eval" / "ru" / "parts"
    parts.mkdir(parents=True)
    (parts / "part-00000-of-00002.jsonl").write_text('{"question_id": "1"}\n{"question_id": "2"}\n')
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "events.jsonl").write_text(json.dumps(EVENTS[0]))
    (run.parent / "link").symlink_to(tmp_path / "secret")
    return run.parent


@pytest.fixture
def client(runs: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(snapshot, "_MAX_AGE_SECONDS", -1.0)
    return TestClient(application(runs, ["127.0.0.1"]), base_url="http://127.0.0.1")


def test_exposition(runs: Path) -> None:
    (run,) = collect(runs, NOW)
    written = exposition([replace(run, free_bytes=4096)])
    assert [line for line in written.splitlines() if not line.startswith("#")] == [
        r'ruvlm_step{run="a\"b"} 2.0',
        r'ruvlm_target_step{run="a\"b"} 100.0',
        r'ruvlm_loss{run="a\"b"} 2.5',
        r'ruvlm_grad_norm{run="a\"b"} 0.5',
        r'ruvlm_learning_rate{run="a\"b"} 0.0001',
        r'ruvlm_tokens_per_second{run="a\"b"} 5.0',
        r'ruvlm_step_seconds{run="a\"b"} 2.0',
        r'ruvlm_data_wait_seconds{run="a\"b"} 0.25',
        r'ruvlm_free_bytes{run="a\"b"} 4096.0',
        r'ruvlm_heartbeat_timestamp_seconds{rank="0",run="a\"b"} 1.699999983e+09',
        r'ruvlm_evaluation_questions_done{evaluation="ru",run="a\"b"} 2.0',
        r'ruvlm_restarts_total{run="a\"b"} 0.0',
    ]
    (runs / 'a"b' / "checkpoints" / "step-00000002" / "weights").write_bytes(b"w" * 7)
    (runs / 'a"b' / "eval" / "ru" / "result.json").write_text('{"score": 0.5, "n": 4}')
    written = exposition(collect(runs, NOW))
    assert 'ruvlm_checkpoint_step{run="a\\"b"} 2.0' in written and "ruvlm_checkpoint_bytes{" in written
    assert 'ruvlm_evaluation_questions_total{evaluation="ru",run="a\\"b"} 4.0' in written
    assert "# TYPE ruvlm_restarts_total counter" in written and "# TYPE ruvlm_loss gauge" in written


def test_textfile(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ruvlm.prom"
    assert vlm(["monitor", str(runs), "--textfile", str(file)]) == 0
    assert "ruvlm_step{" in file.read_text() and file.read_text().endswith("\n")
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == ["ruvlm.prom"]
    assert vlm(["monitor", str(runs), "--textfile", str(tmp_path / "none" / "x.prom")]) == 2
    assert "a folder that exists" in capsys.readouterr().err
    assert vlm(["monitor", str(tmp_path / "none"), "--textfile", str(file)]) == 2


@pytest.mark.parametrize("path", ["/", "/runs/a%22b"])
def test_pages_escape_and_allow_their_own_script_alone(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200 and NAME not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert answer.text.count("<script") == 1 and answer.text.count("silent") > 1


def test_run_page(client: TestClient) -> None:
    text = client.get("/runs/a%22b").text
    assert "<title>(!) " in text and 'class="line raw"' in text and 'aria-label="Loss from 4 at step 1 to 2.5' in text
    assert "damaged" in text and "weights: digest differs" in text and "0 of 2" not in text and "1 of 2" in text


@pytest.mark.parametrize(
    "path", ["/runs/", "/runs/link", "/runs/../secret", "/runs/%2e%2e/secret", "/runs/a", "/page.js"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_another_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_poll_tells_of_a_change(client: TestClient, runs: Path) -> None:
    before = client.get("/poll.json").json()["digest"]
    assert f'data-digest="{before}"' in client.get("/").text or before != client.get("/poll.json").json()["digest"]
    with open(runs / 'a"b' / "events.jsonl", "a") as handle:
        handle.write(json.dumps({**EVENTS[2], "step": 3}) + "\n")
    assert client.get("/poll.json").json()["digest"] != before
    assert "ruvlm_step{" in client.get("/metrics").text


def test_a_run_itself_and_an_empty_folder_are_shown(runs: Path, tmp_path: Path) -> None:
    itself = TestClient(application(runs / 'a"b', ["127.0.0.1"]), base_url="http://127.0.0.1")
    assert itself.get("/runs/").status_code == 200
    (tmp_path / "empty").mkdir()
    empty = TestClient(application(tmp_path / "empty", ["127.0.0.1"]), base_url="http://127.0.0.1")
    assert "No run here yet" in empty.get("/").text


def test_many_readers_cost_one_collection(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(snapshot, "collect", lambda folder: calls.append(folder) or [])
    shared = snapshot.Snapshot(runs)
    assert shared.runs() == shared.runs() == [] and calls == [runs]


def test_real_server(runs: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        running = server(runs, "127.0.0.1")
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
                assert b"ruvlm_target_step{" in answer.read()
        finally:
            running.should_exit = True
            thread.join(20)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_loopback_only(runs: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert vlm(["monitor", str(runs), "--host", host]) == 2
    assert "a token is needed for that; not yet supported" in capsys.readouterr().err


def test_a_taken_port_is_bad_input() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(BadInput, match="choose another --port"):
        listen("127.0.0.1", listener.getsockname()[1])


def test_missing_extra_is_named(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr("launch.monitor.find_spec", lambda name: None if name == "uvicorn" else present(name))
    assert vlm(["monitor", str(runs)]) == 2
    assert "uvicorn is not installed; pip install ruvlm[monitor]" in capsys.readouterr().err
