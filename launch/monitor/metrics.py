"""The runs as Prometheus metrics, in the text exposition format."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launch.monitor.runs import RunStatus, collect
from shards.errors import BadInput
from shards.files import write_atomic

# (value of the label beside `run`, figure); a figure that is unknown is left out
Values = Sequence[tuple[str, float | None]]

_FIGURES: dict[str, tuple[str, Callable[[RunStatus], float | None]]] = {
    "ruvlm_step": ("Optimizer steps done", lambda run: run.step),
    "ruvlm_target_step": ("Optimizer steps planned", lambda run: run.steps),
    "ruvlm_loss": ("Loss a supervised token of the newest step", lambda run: run.loss),
    "ruvlm_heldout_loss": ("Newest loss on the held-out shards", lambda run: run.heldout_loss),
    "ruvlm_grad_norm": ("Gradient norm of the newest step, before clipping", lambda run: run.grad_norm),
    "ruvlm_learning_rate": ("Learning rate of the newest step", lambda run: run.learning_rate),
    "ruvlm_tokens_per_second": ("Tokens a second over the last steps", lambda run: run.tokens_per_second),
    "ruvlm_step_seconds": ("Median seconds between two of the last steps", lambda run: run.step_seconds),
    "ruvlm_data_wait_seconds": ("Seconds that the newest step waited for data", lambda run: run.data_wait_seconds),
    "ruvlm_checkpoint_step": (
        "Step of the newest checkpoint whose digests are right",
        lambda run: run.checkpoint.step if run.checkpoint else None,
    ),
    "ruvlm_checkpoint_bytes": (
        "Bytes of that checkpoint",
        lambda run: run.checkpoint.bytes if run.checkpoint else None,
    ),
    "ruvlm_free_bytes": ("Free bytes of the run's disk", lambda run: run.free_bytes),
}


def _heartbeats(run: RunStatus) -> Values:
    return [(str(beat.rank), beat.time) for beat in run.heartbeats]


def _answered(run: RunStatus) -> Values:
    return [(found.name, found.answered) for found in run.evaluations]


def _questions(run: RunStatus) -> Values:
    return [(found.name, found.questions) for found in run.evaluations]


_LABELLED: dict[str, tuple[str, str, Callable[[RunStatus], Values]]] = {
    "ruvlm_heartbeat_timestamp_seconds": ("Newest sign of life of a rank", "rank", _heartbeats),
    "ruvlm_evaluation_questions_done": ("Questions answered", "evaluation", _answered),
    "ruvlm_evaluation_questions_total": ("Questions of a finished evaluation", "evaluation", _questions),
}


class _Runs(Collector):
    def __init__(self, runs: Sequence[RunStatus]) -> None:
        self.runs = runs

    def collect(self) -> Iterator[Metric]:
        for name, (text, figure) in _FIGURES.items():
            gauge = GaugeMetricFamily(name, text, labels=["run"])
            for run in self.runs:
                if (value := figure(run)) is not None:
                    gauge.add_metric([run.run], value)
            yield gauge
        for name, (text, label, figures) in _LABELLED.items():
            gauge = GaugeMetricFamily(name, text, labels=["run", label])
            for run in self.runs:
                for of, value in figures(run):
                    if value is not None:
                        gauge.add_metric([run.run, of], value)
            yield gauge
        restarts = CounterMetricFamily("ruvlm_restarts", "Starts after the first", labels=["run"])
        for run in self.runs:
            restarts.add_metric([run.run], run.restarts)
        yield restarts


def exposition(runs: Sequence[RunStatus]) -> str:
    """Text that Prometheus scrapes, or that node_exporter's textfile collector reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs(runs))
    return generate_latest(registry).decode("utf-8")


def write_textfile(folder: Path, file: Path) -> None:
    """Write the metrics of the runs below `folder` once, whole; BadInput when `file` cannot lie there."""
    text = exposition(collect(folder))
    if not file.parent.is_dir() or file.is_dir():
        raise BadInput(f"--textfile {file}: cannot be written there; name a file in a folder that exists")
    write_atomic(file, text)
