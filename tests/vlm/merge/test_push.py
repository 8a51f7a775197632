"""A folder put on a hub: one commit, by explicit choice, and nothing that is not whole."""

import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from shards.errors import BadInput, ServerFault
from shards.files import sealed_output
from tests.vlm.merge.handed import write_run
from vlm.handover.push import push


def _no_network(*asked: object) -> None:
    raise AssertionError("nobody asked for a push")


class Hub(BaseHTTPRequestHandler):
    """Answers as a hub does where a folder of small files is uploaded."""

    log: list[tuple[str, str, str | None]]
    status = 200

    def answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        self.log.append((self.path, sent, self.headers.get("authorization")))
        here = f"http://127.0.0.1:{self.server.server_address[1]}/me/model"
        body: Any = {"url": here, "commitOid": "b" * 40, "commitUrl": f"{here}/commit/b", "errors": [], "warnings": []}
        if "/preupload/" in self.path:
            named = [each["path"] for each in json.loads(sent)["files"]]
            body = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
        if "/tree/" in self.path:
            body = [{"type": "file", "path": "model-00001-of-00002.safetensors", "oid": "c", "size": 1}]
        data = json.dumps(body).encode()
        self.send_response(self.status)
        for name, value in (("content-type", "application/json"), ("content-length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    handler = type("Handler", (Hub,), {"log": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    with sealed_output(tmp_path / "small"):
        (tmp_path / "small" / "README.md").write_text("# a model")
        (tmp_path / "small" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "small"


def test_a_push_is_one_commit_to_a_private_repository(hub: Any, small: Path) -> None:
    handler, url = hub
    assert push(small, "me/model", endpoint=url) == f"{url}/me/model/commit/b"
    path, sent, key = handler.log[0]
    told = {"name": "model", "organization": "me", "visibility": "private"}
    assert (path, json.loads(sent), key) == ("/api/repos/create", told, "Bearer hf_secret")
    (commit,) = [sent for path, sent, _ in handler.log if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert files == {"README.md", "model.safetensors", "MANIFEST.json"}
    assert [line["value"]["path"] for line in lines if line["key"] == "deletedFile"] == [
        "model-00001-of-00002.safetensors"
    ]


def test_what_is_not_whole_or_nobodys_is_not_pushed(
    hub: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = hub
    for name, said in (
        ("model", "a name of the hub"),
        ("me/../x", "a name of the hub"),
        ("a/b\n", "a name of the hub"),
    ):
        with pytest.raises(BadInput, match=said):
            push(small, name, endpoint=url)
    with pytest.raises(BadInput, match=r"holds no MANIFEST\.json"):
        push(tmp_path, "me/model", endpoint=url)
    (small / "more").write_text("")
    with pytest.raises(BadInput, match="damaged: more: not in the manifest"):
        push(small, "me/model", endpoint=url)
    (small / "more").unlink()
    with monkeypatch.context() as without:
        without.delenv("HF_TOKEN")
        with pytest.raises(BadInput, match="HF_TOKEN is not set"):
            push(small, "me/model", endpoint=url)
    assert handler.log == []
    handler.status = 403
    with pytest.raises(ServerFault, match=r"me/model: not pushed \(.*403") as caught:
        push(small, "me/model", endpoint=url)
    assert "hf_secret" not in str(caught.value)


def test_a_hub_that_is_not_there(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerFault, match="me/model: not pushed"):
            push(small, "me/model", endpoint=url)


def test_a_merge_is_pushed_by_explicit_choice(
    hub: Any,
    vlm: Callable[..., tuple[int, str, str]],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = write_run(tmp_path / "run", model, r=4)
    handler, url = hub
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    merge = ("merge", adapter, "--base", model, "--out", tmp_path / "out", "--probes", "1")
    with monkeypatch.context() as without:
        without.delenv("HF_TOKEN")
        code, _, said = vlm(*merge, "--push", "me/model")
        assert code == 2 and "HF_TOKEN is not set" in said and not (tmp_path / "out").exists()
    with monkeypatch.context() as offline:
        for name in ("connect", "connect_ex"):
            offline.setattr(socket.socket, name, _no_network)
        assert vlm(*merge)[0] == 0
    code, told, said = vlm(*merge, "--push", "me/model")
    assert code == 0, said
    assert f"pushed to {url}/me/model/commit/b" in told
    (commit,) = [sent for path, sent, _ in handler.log if "/commit/" in path]
    files = {line["value"]["path"] for line in map(json.loads, commit.splitlines()) if line["key"] == "file"}
    assert files == {path.name for path in (tmp_path / "out").iterdir()}
