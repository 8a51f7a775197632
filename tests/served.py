"""Servers to test against: a small scripted one, and a real `transformers serve`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "sk-0123456789"


@dataclass
class Reply:
    """What the scripted server answers; without a status it hangs up, while `hold` is unset it waits. With `drip` it
    sends a space now and then before the body, for four seconds or until nobody listens."""

    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    drip: bool = False


def completion(content: object, finish: str = "stop") -> Reply:
    return Reply(body={"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}]})


Script = Callable[[str, int], Reply]


class Served:
    """A server whose `script` sees (text, how often it was asked for before)."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner._handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        text = asked(request)
        with self._lock:
            before = self.count(text)
            self.requests.append(request)
            self.keys.add(handler.headers["authorization"])
        reply = self.script(text, before)
        if reply.hold:
            reply.hold.wait(10)
        if not reply.status:
            handler.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        drips = 200 if reply.drip else 0
        handler.send_response(reply.status)
        for name, value in {
            "content-type": "application/json", "content-length": str(drips + len(body)), **reply.headers,
        }.items():  # fmt: skip
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(drips):
                handler.wfile.write(b" ")
                threading.Event().wait(0.02)
            handler.wfile.write(body)

    def count(self, text: str) -> int:
        return sum(asked(request) == text for request in self.requests)


def asked(request: dict[str, Any]) -> str:
    """The last message's text, beside which an image may stand, or the text to embed."""
    if "input" in request:
        return str(request["input"][0])
    content = request["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


@contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """URL of a running `transformers serve` of a model folder."""
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    with running([sys.executable, "-c", program, "serve", str(folder), "--device", "cpu"], log) as url:
        yield url


@contextmanager
def running(command: list[str], log: Path) -> Iterator[str]:
    """URL of a server that a command starts once it has been given --host and --port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "wb") as lines:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=lines,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        # its workers too
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
    pytest.fail(f"the server did not come up: {log.read_text()[-2000:]}")


@contextmanager
def serving() -> Iterator[Callable[[Script], Served]]:
    """Starts servers by their scripts, and ends them all."""
    started: list[Served] = []

    def start(script: Script) -> Served:
        started.append(Served(script))
        return started[-1]

    yield start
    for served in started:
        served.http.shutdown()
        served.http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Script], Served]]:
    """Starts servers by their scripts; the variable THE_KEY holds a key for them, which must be nowhere afterwards."""
    pytest.importorskip("openai")
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving() as start:
        yield start
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
