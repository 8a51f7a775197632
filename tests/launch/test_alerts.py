"""Each alert is raised by a run's files, in `vlm status` and through Prometheus's rules, and none by a clean run."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import launch.slurm
from launch.monitor.alerts import ALERTS, rules
from launch.monitor.metrics import FIGURES, exposition
from launch.monitor.run import RunStatus
from launch.monitor.runs import collect
from tests.launch.written import (
    NOW,
    START,
    FakeSlurm,
    event,
    steps,
    write_checkpoint,
    write_heartbeats,
    write_job,
    write_lines,
    write_run,
)

DOCS = Path(__file__).parents[2] / "docs"
RULES, TESTED = DOCS / "prometheus" / "ruvlm.rules.yml", DOCS / "prometheus" / "ruvlm.rules.test.yml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool missing: apt-get install prometheus")


@dataclass
class Case:
    """A clean run: two ranks at step 60 of 100, the checkpoint of that step whole, its job running on two nodes."""

    run: Path
    slurm: FakeSlurm
    patch: pytest.MonkeyPatch
    textfile: Path

    def say(self, *events: dict[str, object]) -> None:
        write_lines(self.run / "events.jsonl", events, "a")

    def status(self) -> RunStatus:
        launch.slurm._ask.cache_clear()
        (found,) = collect(self.run.parent, NOW, textfile=self.textfile)
        return found


def clean_case(folder: Path, slurm: FakeSlurm, patch: pytest.MonkeyPatch) -> Case:
    launch.slurm._ask.cache_clear()
    told = [START, *steps(1, 60, 1, 2), event("checkpoint", 1, step=60, seconds=0.5)]
    run = write_run(folder / "runs" / "mine", told, (2, 2), (60,))
    write_heartbeats(run, (2, 2), (0.5, 0.6))
    write_job(run, "41")
    slurm.answer("squeue", [slurm.job("41", "RUNNING", nodes="n[1-2]")])
    slurm.answer("sinfo", [slurm.node("n1", "allocated"), slurm.node("n2", "mixed"), slurm.node("n3", "down*")])
    slurm.answer("sacct", [])
    textfile = folder / "ruvlm.prom"
    textfile.touch()
    os.utime(textfile, (NOW - 60, NOW - 60))
    patch.setattr("launch.monitor.runs.shutil.disk_usage", lambda path: SimpleNamespace(free=10**12))
    return Case(run, slurm, patch, textfile)


@pytest.fixture
def case(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Case:
    return clean_case(tmp_path, slurm, monkeypatch)


def _requeued(case: Case) -> None:
    case.say(event("stop", 1, step=60))
    case.slurm.answer("squeue", [case.slurm.job("41", "PENDING", restarts=1, pending=181)])
    case.slurm.answer("sacct", ["41|41|REQUEUED|n[1-2]"])


def _damaged(case: Case) -> None:
    path = write_checkpoint(case.run, 80) / "adapter" / "adapter_model.safetensors"
    path.write_bytes(b"W" + path.read_bytes()[1:])


def _ended(case: Case, times: int) -> None:
    """The job died so often at step 60."""
    for restart in range(times):
        end = {"time": NOW, "job": "41", "stage": "train", "code": 137, "cause": "killed", "restart": restart}
        again = {"step": 60, "again": restart < 3, "reason": "a process was killed by SIGKILL"}
        write_lines(case.run / "jobs" / "restarts.jsonl", [end | again], "a")


BREAK: dict[str, Callable[[Case], object]] = {
    "RuvlmHeartbeatSilent": lambda case: write_heartbeats(case.run, (2, 31)),
    "RuvlmNoProgress": lambda case: _ended(case, 4),
    "RuvlmCheckpointDamaged": _damaged,
    "RuvlmDiskSpace": lambda case: case.patch.setattr(
        "launch.monitor.runs.shutil.disk_usage", lambda path: SimpleNamespace(free=100)
    ),
    "RuvlmCheckpointOverdue": lambda case: case.say(*steps(61, 81, 0.1, 0)),
    "RuvlmNonfiniteStep": lambda case: case.say(event("nonfinite", 1, step=60, in_a_row=1, samples=["ru/7"])),
    "RuvlmLossSpike": lambda case: case.say(event("spike", 1, step=60, loss=9.0, sigmas=7.2, samples=["ru/7"])),
    "RuvlmStraggler": lambda case: case.say(event("straggler", 1, step=60, rank=1, speed=0.667)),
    "RuvlmDataWait": lambda case: case.say(*steps(61, 79, 1, 0, wait=0.53)),
    "RuvlmSkippedSamples": lambda case: case.say(
        event("skipped", 1, step=60, sample="ru/7", kind="image", reason="not a JPEG")
    ),
    "RuvlmPendingAfterRequeue": _requeued,
    "RuvlmNodeDown": lambda case: case.slurm.answer("sinfo", [case.slurm.node("n2", "draining", "bad fan")]),
    "RuvlmTextfileStale": lambda case: os.utime(case.textfile, (NOW - 301, NOW - 301)),
}
# one step less, one second less: still no alert
NEARLY: dict[str, Callable[[Case], object]] = {
    "RuvlmHeartbeatSilent": lambda case: write_heartbeats(case.run, (2, 30)),
    "RuvlmNoProgress": lambda case: (
        case.say(*[event("start", 3, step=60, steps=100, ranks=2)] * 3),
        _ended(case, 3),
    ),
    "RuvlmCheckpointDamaged": lambda case: (write_checkpoint(case.run, 70) / "MANIFEST.json").unlink(),
    "RuvlmDiskSpace": lambda case: case.patch.setattr(
        "launch.monitor.runs.shutil.disk_usage", lambda path: SimpleNamespace(free=2000)
    ),
    "RuvlmCheckpointOverdue": lambda case: case.say(*steps(61, 80, 0.1, 0)),
    "RuvlmNonfiniteStep": lambda case: case.say(
        event("nonfinite", 1, step=20, in_a_row=1, samples=[]), *steps(61, 75, 0.1, 0)
    ),
    "RuvlmLossSpike": lambda case: case.say(event("spike", 1, step=9, loss=9.0, sigmas=7.2, samples=[])),
    "RuvlmStraggler": lambda case: case.say(
        event("straggler", 1, step=60, rank=1, speed=0.667), event("start", 1, step=60, steps=100, ranks=2)
    ),
    "RuvlmDataWait": lambda case: case.say(*steps(61, 79, 1, 0, wait=0.5)),
    "RuvlmSkippedSamples": lambda case: None,
    "RuvlmPendingAfterRequeue": lambda case: case.slurm.answer(
        "squeue", [case.slurm.job("41", "PENDING", restarts=1, pending=180)]
    ),
    "RuvlmNodeDown": lambda case: case.slurm.answer(
        "sinfo", [case.slurm.node("n2", "idle"), case.slurm.node("n3", "down")]
    ),
    "RuvlmTextfileStale": lambda case: os.utime(case.textfile, (NOW - 300, NOW - 300)),
}


def names(run: RunStatus) -> set[str]:
    return {alert.name for alert in run.alerts}


def test_a_clean_run_raises_none(case: Case) -> None:
    found = case.status()
    assert found.alerts == () and found.problems == () and found.state == "running"
    assert [(job.id, job.state, job.nodes) for job in found.jobs] == [("41", "RUNNING", ("n1", "n2"))]
    assert [(node.name, node.state) for node in found.nodes] == [("n1", "allocated"), ("n2", "mixed")]


@pytest.mark.parametrize("name", [alert.name for alert in ALERTS])
def test_each_alert_is_raised_and_not_a_moment_too_early(case: Case, name: str) -> None:
    NEARLY[name](case)
    assert names(case.status()) == set()
    BREAK[name](case)
    found = case.status()
    assert name in names(found)
    (alert,) = [alert for alert in found.alerts if alert.name == name][:1]
    assert alert.text in found.problems and alert.text.isprintable()
    assert f"\n## {name}\n" in (DOCS / "operations.md").read_text("utf-8") and alert.anchor == name.lower()


def test_the_committed_rules_are_those_of_the_table() -> None:
    assert RULES.read_text("utf-8") == rules(), "python -m launch.monitor.alerts > docs/prometheus/ruvlm.rules.yml"


def test_the_rules_name_only_metrics_that_there_are() -> None:
    ours = {f.name + ("_total" if f.kind.__name__.startswith("Counter") else "") for f in FIGURES}
    used = {word for alert in ALERTS for word in re.findall(r"ruvlm_\w+", alert.expression)}
    assert used <= ours
    board = (DOCS / "grafana" / "ruvlm.json").read_text("utf-8")
    assert set(re.findall(r"ruvlm_\w+", board)) <= ours


def series(run: RunStatus) -> dict[str, float]:
    """What the rules read of a run; times count from NOW."""
    used = {word for alert in ALERTS for word in re.findall(r"ruvlm_\w+", alert.expression)}
    found = {}
    for family in text_string_to_metric_families(exposition([run])):
        for sample in family.samples:
            if sample.name in used:
                labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
                moment = NOW if sample.name.endswith("_timestamp_seconds") else 0
                found[f"{sample.name}{{{labels}}}"] = round(sample.value - moment, 6)
    return found


def story(name: str, clean: dict[str, float], broken: dict[str, float], stale: bool) -> dict[str, object]:
    """Ten minutes of a clean run, then twenty of the broken one; at the end only `name` fires."""
    written = []
    for key in sorted(clean | broken):
        slope = "60" if "_timestamp_seconds" in key else "0"
        first = f"{clean[key]:g}+{slope}x9" if key in clean else "_x10"
        after = "0" if stale else slope
        at = broken.get(key, 0) + (540 if stale else 600) * (slope == "60")
        written.append({"series": key, "values": f"{first} " + (f"{at:g}+{after}x20" if key in broken else "_x21")})
    firing = 'group by (alertname) (ALERTS{alertstate="firing"})'
    fired = [{"labels": f'{{alertname="{name}"}}', "value": 1}]
    moments = [("9m", []), ("30m", fired)]
    return {
        "interval": "1m",
        "name": name,
        "input_series": written,
        "promql_expr_test": [{"expr": firing, "eval_time": at, "exp_samples": samples} for at, samples in moments],
    }


@needs_promtool
def test_prometheus_fires_each_and_none_on_a_clean_run(slurm: FakeSlurm, tmp_path: Path) -> None:
    stories = []
    for alert in ALERTS:
        with pytest.MonkeyPatch.context() as patch:
            (tmp_path / alert.name).mkdir()
            one = clean_case(tmp_path / alert.name, slurm, patch)
            clean = series(one.status())
            BREAK[alert.name](one)
            stories.append(story(alert.name, clean, series(one.status()), alert.name == "RuvlmTextfileStale"))
    text = "# Written by tests/launch/test_alerts.py; RUVLM_UPDATE=1 writes it anew. promtool test rules THIS_FILE\n"
    text += yaml.safe_dump({"rule_files": [RULES.name], "evaluation_interval": "1m", "tests": stories}, sort_keys=False)
    if os.environ.get("RUVLM_UPDATE"):
        TESTED.write_text(text, "utf-8")
    assert TESTED.read_text("utf-8") == text
    for command in (["check", "rules", RULES.name], ["test", "rules", TESTED.name]):
        done = subprocess.run([PROMTOOL or "", *command], cwd=RULES.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
