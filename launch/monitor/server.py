"""`vlm monitor`: pages, a poll and Prometheus metrics over HTTP, on this machine alone."""

import asyncio
import base64
import hashlib
import ipaddress
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from launch.monitor.curves import curves
from launch.monitor.metrics import exposition
from launch.monitor.runs import RunStatus
from launch.monitor.snapshot import Snapshot, digest
from launch.monitor.words import count, duration, plain, size
from shards.errors import BadInput
from vlm.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class Pages:
    """The endpoints. They run in threads, so a slow disk holds up no other request."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.snapshot = folder, Snapshot(folder)
        self.environment = Environment(
            loader=FileSystemLoader(_HERE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters.update(count=count, duration=duration, plain=plain, size=size)
        script = (_HERE / "page.js").read_text("utf-8")
        self.environment.globals.update(script=script, drawing=(WIDTH, HEIGHT), plot=(LEFT, TOP, RIGHT, BOTTOM))
        self.headers = {
            "Content-Security-Policy": f"{_POLICY}; script-src 'sha256-{_sha256(script)}'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def runs(self, request: Request) -> Response:
        """All runs, those with problems first."""
        return self._page("runs.html", self.snapshot.runs())

    def run(self, request: Request) -> Response:
        """One run by its path below the folder. Looked up, never joined to a path, so no address leads elsewhere."""
        label = request.path_params["run"] or "."
        runs = self.snapshot.runs()
        run = next((run for run in runs if run.run == label), None)
        if run is None:
            return PlainTextResponse("no such run\n", 404, self.headers)
        return self._page("run.html", runs, run=run, charts=curves(self.folder.resolve(), run.folder))

    def poll(self, request: Request) -> Response:
        """Whether a page would be another one now."""
        return JSONResponse({"digest": digest(self.snapshot.runs())}, headers=self.headers)

    def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(exposition(self.snapshot.runs()), media_type=_TEXT_FORMAT, headers=self.headers)

    def _page(self, template: str, runs: Sequence[RunStatus], **values: Any) -> Response:
        fixed = {"folder": plain(str(self.folder)), "digest": digest(runs), "now": time.time(), "runs": runs}
        return HTMLResponse(self.environment.get_template(template).render(fixed | values), headers=self.headers)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def application(folder: Path, hosts: list[str]) -> Starlette:
    """The monitor of `folder`. Requests for another host than `hosts` are refused: a foreign page whose name is made
    to point here must not read it."""
    pages = Pages(folder)
    routes = [
        Route("/", pages.runs),
        Route("/runs/{run:path}", pages.run),
        Route("/poll.json", pages.poll),
        Route("/metrics", pages.metrics),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


def listen(host: str, port: int) -> socket.socket:
    """A listening loopback socket; BadInput for another host and for a port that is taken."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise BadInput(f"--host {host}: a token is needed for that; not yet supported; use 127.0.0.1")
    if not 0 <= port < 65536:
        raise BadInput(f"--port {port}: must be from 0 (any free one) to 65535")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # from here on a request waits until the server is up
        listener.listen()
    except OSError as error:
        listener.close()
        raise BadInput(f"--port {port}: cannot listen on {host} ({error.strerror}); choose another --port") from None
    return listener


def server(folder: Path, host: str) -> uvicorn.Server:
    """A server for a socket of `listen`."""
    names = ["localhost", host, f"[{host}]"]
    return uvicorn.Server(
        uvicorn.Config(application(folder, names), log_level="warning", server_header=False, lifespan="off")
    )


def serve(folder: Path, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name a run or a folder of runs")
    with listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        print(f"monitor of {plain(str(folder))}: http://{shown}:{listener.getsockname()[1]}/", flush=True)
        try:
            asyncio.run(server(folder, host).serve(sockets=[listener]))
        except KeyboardInterrupt:
            return
