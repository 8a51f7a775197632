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

_WIDTH = 170
_REDRAW_SECONDS = 2.0
_COLOURS = {"running": "green", "silent": "bold red", "stopped": "yellow", "queued": "yellow"}
_MOST_JOBS = 3
_OPTIONAL = ("jobs", "MFU")
_WIDE, _WIDE_ONLY = 150, ("tokens/s", "MFU", "restarts", "skipped", "free")


def status(folder: Path, as_json: bool = False, watch: bool = False, textfile: Path | None = None) -> None:
    """Print the runs at or below `folder`; with `watch` again every 2 s until Ctrl-C.

    With `textfile` the age of that file is judged too. Raises BadInput when there is no such folder or no run in it.
    """
    if as_json and watch:
        raise BadInput("--watch redraws a screen and --json is for a machine; give one of them")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    try:
        while True:
            runs, now = runs_in(folder, textfile), time.time()
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


def runs_in(folder: Path, textfile: Path | None = None) -> list[RunStatus]:
    """The runs at or below `folder`, at least one."""
    runs = collect(folder, textfile=textfile)
    if not runs:
        raise BadInput(f"{folder}: no run in it (no events.jsonl); name the run directory of a recipe or one above it")
    return runs


def draw(runs: list[RunStatus], now: float, console: Console) -> None:
    """Problems in words, with the alert's name where it is one, then a table of the runs, then their evaluations."""
    for run in runs:
        names = [alert.name for alert in run.alerts]
        for i, problem in enumerate(run.problems):
            name = f" [{names[i]}]" if i < len(names) else ""
            console.print(Text.assemble((f"{_title(run)}: ", "bold red"), problem, (name, "dim")))
    console.print(_runs(runs, now, wide=console.width >= _WIDE))
    if any(run.evaluations for run in runs):
        console.print(_evaluations(runs))
    for line in sorted({run.slurm for run in runs if run.slurm}):
        console.print(Text(f"Slurm was not heard, states of jobs and nodes may be missing: {plain(line)}", "yellow"))


def _runs(runs: list[RunStatus], now: float, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [_cells(run, now) for run in runs]
    # what no run has is left out, and where the terminal is narrow what can wait
    names = [
        name
        for name in rows[0]
        if (name not in _OPTIONAL or any(str(row[name]) != "-" for row in rows)) and (wide or name not in _WIDE_ONLY)
    ]
    for name in names:
        left = name in ("run", "state", "jobs")
        table.add_column(
            name,
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=wide and name != "run",
            min_width=16 if name == "run" else None,
        )
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _cells(run: RunStatus, now: float) -> dict[str, str | Text]:
    return {
        "run": Text(_title(run)),
        "state": Text(f"{run.stage}: {run.state}", _COLOURS.get(run.state, "")),
        "jobs": _jobs(run),
        "step": "-" if run.step is None else f"{run.step}/{run.steps or '?'}",
        "loss": "-" if run.loss is None else f"{run.loss:.4g}",
        "tokens/s": "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        "MFU": "-" if run.mfu is None else f"{100 * run.mfu:.0f} %",
        "ETA": "-" if run.eta_seconds is None else duration(run.eta_seconds),
        "checkpoint": _checkpoint(run, now),
        "restarts": _restarts(run),
        "skipped": str(sum(run.skipped.values())),
        "free": "-" if run.free_bytes is None else size(run.free_bytes),
    }


def _jobs(run: RunStatus) -> Text:
    """The newest jobs with their state; those of an array share a line when they share a state."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for job in run.jobs:
        group = job.array.partition("_")[0] or job.id
        lines.setdefault((group, job.stage, job.state), []).append(job.id)
    shown = [f"{group} {stage} {state or '?'}{f' x{len(ids)}' if len(ids) > 1 else ''}"
             for (group, stage, state), ids in lines.items()]  # fmt: skip
    return Text("\n".join(shown[:_MOST_JOBS]) or "-")


def _restarts(run: RunStatus) -> str:
    return "\n".join(f"{count} {cause}" for cause, count in run.restart_causes.items()) or str(run.restarts)


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
