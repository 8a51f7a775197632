"""`vlm monitor`: pages that escape what they show, nothing outside the folder, checkpoints verified on request."""

import html
import json
import os
import re
import sys
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from launch.cli import run as vlm
from launch.monitor import snapshot
from launch.monitor.logs import of_job, tail
from launch.monitor.outputs import read_digests, verify_now
from launch.monitor.runs import collect
from launch.monitor.server import application, listen, server
from launch.monitor.verify import Verifier
from launch.slurm import Answer
from shards.errors import BadInput
from shards.files import write_manifest
from tests.launch.written import write_job

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
    (run / "logs").mkdir()
    (run / "logs" / "train-41.out").write_text(f"first\nerror: {NAME}\nlast\n")
    (run / "logs" / "out.out").symlink_to(tmp_path / "secret" / "events.jsonl")
    (run / "jobs" / "train").mkdir(parents=True)
    (run / "jobs" / "train" / "41_submitted.pkl").write_bytes(b"pickle")
    (parts / "part-00000-of-00002.jsonl").write_text('{"question_id": "1"}\n{"question_id": "2"}\n')
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "events.jsonl").write_text(json.dumps(EVENTS[0]))
    (run.parent / "link").symlink_to(tmp_path / "secret")
    return run.parent


@pytest.fixture
def client(runs: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(snapshot, "_MAX_AGE_SECONDS", -1.0)
    return TestClient(application(runs, ["127.0.0.1"]), base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", ["/", "/runs/a%22b", "/logs/a%22b?file=logs/train-41.out&q=<script>alert(1)"])
def test_pages_escape_and_allow_their_own_script_alone(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200 and NAME not in answer.text
    assert "&lt;script&gt;alert(1)" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "unsafe" not in policy
    assert answer.text.count("<script") == 1 and answer.text.count("<style") == 1 and " style=" not in answer.text


def test_run_page(client: TestClient) -> None:
    text = client.get("/runs/a%22b").text
    assert "<title>(!) " in text and 'class="line raw"' in text and 'aria-label="Loss from 4 at step 1 to 2.5' in text
    assert wait_for(client, "weights: digest differs") and "0 of 2" not in text and "1 of 2" in text


@pytest.mark.parametrize(
    "path",
    [
        *("/runs/", "/runs/link", "/runs/../secret", "/runs/%2e%2e/secret", "/runs/a", "/page.js", "/logs/a"),
        *(
            f"/logs/a%22b?file={name}"
            for name in (
                *("", "logs", "logs/", "events.jsonl", "logs/out.out", "jobs/train/41_submitted.pkl", "logs/a%00.out"),
                *("logs/../events.jsonl", "logs/%2e%2e/recipe.txt", "../secret/events.jsonl", "/etc/hostname"),
            )
        ),
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def jobs_section(client: TestClient) -> str:
    text = client.get("/runs/a%22b").text
    return html.unescape(text.partition('<section id="jobs">')[2].partition("</section>")[0])


def test_the_output_of_a_job_is_opened_where_it_may_be_shown(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_MAX_AGE_SECONDS", -1.0)
    monkeypatch.setattr("launch.monitor.runs.ask", lambda ids: Answer())
    run, given, away = runs / 'a"b', tmp_path / "given", tmp_path / "away"
    for folder in (given, away, runs / "outputs"):
        folder.mkdir()
        (folder / "train-50.out").write_text("".join(f"line {i} of {folder.name}\n" for i in range(3)))
    (tmp_path / "alias").symlink_to(given)
    write_job(run, "50", log=str(runs / "outputs" / "train-50.out"))
    write_job(run, "51", log=str(tmp_path / "alias" / "train-50.out"))
    write_job(run, "52", log=str(away / "train-50.out"))
    write_job(run, "53", "eval", "60_3", str(run / "logs" / "eval-60-3.out"))
    (run / "logs" / "eval-60-3.out").touch()
    client, more = (
        TestClient(application(runs, ["127.0.0.1"], logs=logs), base_url="http://127.0.0.1") for logs in ([], [given])
    )
    assert "line 2 of outputs" in client.get("/logs/a%22b?job=50").text
    assert [each.get("/logs/a%22b?job=51").status_code for each in (client, more)] == [404, 200]
    found = more.get("/logs/a%22b?job=51&q=LINE+1").text
    assert "<mark>line 1</mark> of given" in found and 'name="job" value="51"' in found
    # what may not be opened is named; what lies in the run's own folders is linked once
    section = jobs_section(more)
    assert "?job=50" in section and "?job=51" in section and "?job=52" not in section
    assert str(away / "train-50.out") in section
    assert section.count("eval-60-3.out</bdi>") == 1 and "?file=logs/eval-60-3.out" in section


@pytest.mark.parametrize(
    "log",
    [
        *("SECRET/events.out", "RUNS/link/events.out", 'RUNS/a"b/out.out', "RUNS/../secret/events.out", "events.out"),
        *('RUNS/a"b/jobs/train/41_submitted.pkl', 'RUNS/a"b/recipe.yaml', "RUNS/pipe.out", "RUNS/loop.out", "RUNS"),
        *("RUNS/\0.out", "/" + "x" * 5000 + ".out", "/x" * 1800 + ".out", "\udcff", f"/{NAME}.out", "", 5, ["/"]),
    ],
)
def test_a_hostile_path_of_a_job_s_output_is_never_opened(client: TestClient, runs: Path, log: object) -> None:
    run, secret = runs / 'a"b', runs.parent / "secret"
    (secret / "events.out").write_text("secret")
    (run / "out.out").symlink_to(secret / "events.out")
    (runs / "loop.out").symlink_to(runs / "loop.out")
    os.mkfifo(runs / "pipe.out")
    if isinstance(log, str):
        log = log.replace("RUNS", str(runs)).replace("SECRET", str(secret))
    write_job(run, "50", log=log)
    page = client.get("/runs/a%22b")
    assert page.status_code == 200 and NAME not in page.text and "?job=" not in page.text
    assert client.get("/logs/a%22b?job=50").status_code == 404
    # an address names a job of the run, nothing else
    for name in ("", "51", "../50", quote(str(secret / "events.out"))):
        assert client.get(f"/logs/a%22b?job={name}").status_code == 404
    json.dumps([each.to_json(NOW) for each in collect(runs, slurm=False)], ensure_ascii=False).encode()


def test_an_output_replaced_by_a_link_is_not_followed(runs: Path) -> None:
    folder = runs / "outputs"
    folder.mkdir()
    (folder / "x.out").write_text("mine")
    log = of_job(str(folder / "x.out"), [runs.resolve()])
    assert log and tail(log)
    folder.rename(runs / "moved")
    folder.symlink_to(runs.parent / "secret")
    (runs.parent / "secret" / "x.out").write_text("secret")
    assert tail(log) is None


def test_another_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_a_page_asked_for_again_shows_what_is_new(client: TestClient, runs: Path) -> None:
    assert "to 2.5 at step 2" in client.get("/runs/a%22b").text
    with open(runs / 'a"b' / "events.jsonl", "a") as handle:
        handle.write(json.dumps({**EVENTS[2], "step": 3, "loss": 2.25, "memory_bytes": 3 << 30}) + "\n")
    text = client.get("/runs/a%22b").text
    assert "to 2.25 at step 3" in text and "Peak memory, GiB from 3 at step 3" in text
    assert "ruvlm_step{" in client.get("/metrics").text


def form(client: TestClient) -> dict[str, str]:
    """The fields of the button that has a checkpoint verified."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', client.get("/runs/a%22b").text)
    return {name: html.unescape(value) for name, value in found}


@pytest.mark.parametrize(
    ("headers", "wrong", "code"),
    [
        ({}, {}, 303),
        ({"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}, {}, 303),
        ({}, {"secret": "x"}, 403),
        ({"origin": "http://evil.example"}, {}, 403),
        ({"origin": "null"}, {}, 403),
        ({"sec-fetch-site": "cross-site"}, {}, 403),
        ({}, {"step": "3"}, 404),
        ({}, {"run": "../secret"}, 404),
        ({}, {"pad": "x" * 9000}, 403),
    ],
)
def test_only_the_page_itself_has_a_checkpoint_verified(
    client: TestClient, headers: dict[str, str], wrong: dict[str, str], code: int
) -> None:
    fields = form(client)
    assert client.post("/verify", data=fields | wrong, headers=headers, follow_redirects=False).status_code == code
    assert client.get("/verify").status_code == 405


def test_a_flipped_bit_is_found_on_request_while_pages_are_served(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = runs / 'a"b' / "checkpoints" / "step-00000002" / "weights"
    weights.write_bytes(b"w" * 7)
    times = weights.stat()
    reading, go_on = threading.Event(), threading.Event()

    def slowly(path: Path) -> str:
        reading.set()
        assert go_on.wait(20)
        return verify_now(path)

    monkeypatch.setattr(Verifier.__init__, "__defaults__", (slowly,))
    monkeypatch.setattr(snapshot, "_MAX_AGE_SECONDS", -1.0)
    client = TestClient(application(runs, ["127.0.0.1"]), base_url="http://127.0.0.1")
    assert ">checking<" in client.get("/runs/a%22b").text  # the newest is read without being asked for
    go_on.set()
    assert wait_for(client, ">whole<")
    # sizes and times tell nothing
    weights.write_bytes(b"w" * 6 + b"W")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ">whole<" in client.get("/runs/a%22b").text
    go_on.clear()
    reading.clear()
    assert client.post("/verify", data=form(client)).status_code == 200
    assert reading.wait(20) and ">checking<" in client.get("/runs/a%22b").text
    go_on.set()
    assert wait_for(client, "weights: digest differs")
    assert wait_for(client, "checkpoint of step 2 is damaged")


def wait_for(client: TestClient, text: str) -> bool:
    deadline = time.monotonic() + 20
    while text not in client.get("/runs/a%22b").text:
        if time.monotonic() > deadline:
            return False
    return True


def test_alerts_have_their_section_of_the_runbook(client: TestClient) -> None:
    anchors = re.findall(r'href="/runbook#([^"]+)"', client.get("/runs/a%22b").text)
    book = client.get("/runbook").text
    assert anchors and all(f'id="{anchor}"' in book for anchor in anchors)


def test_a_run_itself_and_an_empty_folder_are_shown(runs: Path, tmp_path: Path) -> None:
    itself = TestClient(application(runs / 'a"b', ["127.0.0.1"]), base_url="http://127.0.0.1")
    assert itself.get("/runs/").status_code == 200
    (tmp_path / "empty").mkdir()
    empty = TestClient(application(tmp_path / "empty", ["127.0.0.1"]), base_url="http://127.0.0.1")
    assert "No run here yet" in empty.get("/").text


def test_many_readers_cost_one_collection(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(snapshot, "collect", lambda folder, digests: calls.append(folder) or [])
    shared = snapshot.Snapshot(runs, read_digests)
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


def test_a_taken_port_is_bad_input() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(BadInput, match="choose another --port"):
        listen("127.0.0.1", listener.getsockname()[1])


def test_a_folder_of_logs_that_is_not_there_is_bad_input(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.monitor.server.asyncio.run", lambda serving: serving.close())
    assert vlm(["monitor", str(runs), "--port", "0", "--logs", str(runs), "--logs", str(runs / "none")]) == 2
    assert "none: no such folder; name one that jobs write their output to" in capsys.readouterr().err


def test_missing_extra_is_named(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert vlm(["monitor", str(runs)]) == 2
    told = 'vlm: vlm monitor needs uvicorn, which is not installed: pip install "ruvlm[monitor]"\n'
    assert capsys.readouterr().err == told
