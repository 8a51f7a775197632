"""The training curves of a run, drawn as its report draws them."""

from pathlib import Path

from launch.monitor.outputs import regular
from launch.monitor.training import EVENTS, LAST_BYTES
from launch.monitor.words import number, whole
from vlm.events import iterate_events
from vlm.report.charts import Chart, charts
from vlm.report.training import StepRecord, Training


def curves(root: Path, run: Path) -> list[Chart]:
    """Loss, learning rate and tokens per second over the steps; of a step that was run again, the last."""
    steps: dict[int, StepRecord] = {}
    if regular(root, run / EVENTS):
        for event in iterate_events(run, LAST_BYTES):
            step = whole(event, "step")
            if event.get("event") == "step" and step is not None:
                steps[step] = StepRecord(
                    step=step,
                    loss=number(event, "loss"),
                    lr=number(event, "lr"),
                    tokens=number(event, "tokens"),
                    seconds=number(event, "seconds"),
                    wait=number(event, "data_wait_seconds"),
                    speed=number(event, "tokens_per_second"),
                )
    return charts(
        Training(
            name="",
            steps=tuple(steps[step] for step in sorted(steps)),
            planned=None,
            ranks=None,
            attention="",
            samples=None,
            evaluations=(),
            checkpoints=(),
            restarts=0,
            repeated=0,
            finished=False,
            began=None,
        )
    )
