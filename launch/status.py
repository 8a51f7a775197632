"""`vlm status`: the runs below a folder on the terminal."""

import json
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.monitor.runs import RunStatus, collect
from launch.monitor.words import duration, plain, size
from shards.errors import BadInput

_WIDTH = 140
_REDRAW_SECONDS = 2.0
_COLOURS = {"running": "green", "silent": "bold red", "stopped": "yellow"}


def status(folder: Path, as_json: bool = False, watch: bool = False) -> None:
    """Print the runs at or below `folder`; with `watch` again every 2 s until Ctrl-C.

    Raises BadInput when there is no such folder or no run in it.
    """
    if as_json and watch:
        raise BadInput("--watch redraws a screen and --json is for a machine; give one of them")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    try:
        while True:
            runs, now = runs_in(folder), time.time()
            if as_json:
                print(json.dumps([run.to_json(now) for run in runs], ensure_ascii=False), flush=True)
                return
            if watch:
                console.clear()
            draw(runs, now, console)
            if not watch:
                return
            time.sleep(_REDRAW_SECONDS)
    except KeyboardInterrupt:
        return


def runs_in(folder: Path) -> list[RunStatus]:
    """The runs at or below `folder`, at least one."""
    runs = collect(folder)
    if not runs:
        raise BadInput(f"{folder}: no run in it (no events.jsonl); name the run directory of a recipe or one above it")
    return runs


def draw(runs: list[RunStatus], now: float, console: Console) -> None:
    """Problems in words, then a table of the runs, then their evaluations."""
    for run in runs:
        for problem in run.problems:
            console.print(Text.assemble((f"{_title(run)}: ", "bold red"), problem))
    console.print(_runs(runs, now))
    if any(run.evaluations for run in runs):
        console.print(_evaluations(runs))


def _runs(runs: list[RunStatus], now: float) -> Table:
    left, right = ("run", "state"), ("step", "loss", "tokens/s", "ETA", "checkpoint", "restarts", "free")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(
            Text(_title(run)),
            Text(f"{run.stage}: {run.state}", _COLOURS.get(run.state, "")),
            "-" if run.step is None else f"{run.step}/{run.steps or '?'}",
            "-" if run.loss is None else f"{run.loss:.4g}",
            "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            "-" if run.eta_seconds is None else duration(run.eta_seconds),
            _checkpoint(run, now),
            str(run.restarts),
            "-" if run.free_bytes is None else size(run.free_bytes),
        )
    return table


def _title(run: RunStatus) -> str:
    path = plain(run.run)
    return run.name if path == "." else f"{path} ({run.name})" if run.name != path.rsplit("/")[-1] else path


def _checkpoint(run: RunStatus, now: float) -> str:
    if run.checkpoint is None:
        return "none whole" if run.checkpoints else "none"
    return f"{run.checkpoint.step}, {duration(now - run.checkpoint.time)} old, {size(run.checkpoint.bytes)}"


def _evaluations(runs: list[RunStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "evaluation"):
        table.add_column(name, overflow="fold")
    for name in ("parts", "answered", "score"):
        table.add_column(name, justify="right")
    for run in runs:
        for found in run.evaluations:
            of = f"{found.answered} of {found.questions}" if found.questions is not None else str(found.answered)
            score = "-" if found.score is None else f"{found.score:.4f}"
            parts = f"{found.parts_done}/{found.parts}" if found.parts else "-"
            table.add_row(Text(_title(run)), Text(plain(found.name)), parts, of, score)
    return table
