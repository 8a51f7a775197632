"""`vlm launch`: the graph, the sbatch header as a golden text, submission to a Slurm whose commands are recorded."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from launch.cli import run as vlm
from launch.pipeline import in_job
from vlm.model.adapter import METHODS

OVERRIDES = [
    "cluster.partition=gpu", "cluster.account=nlp", "cluster.nodes=2", "cluster.gpus_per_node=8",
    "cluster.cpus_per_task=12", "cluster.mem_gb=480", "eval.data=data/ru-test",
]  # fmt: skip

TRAIN_HEADER = """\
#SBATCH --account=nlp
#SBATCH --cpus-per-task=12
#SBATCH --error={run}/jobs/train/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=demo-train
#SBATCH --mem=480GB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output={run}/jobs/train/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=1440
#SBATCH --wckey=submitit
"""

REPORT_HEADER = """\
#SBATCH --account=nlp
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_MERGE
#SBATCH --error={run}/jobs/report/%j_0_log.err
#SBATCH --job-name=demo-report
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=480GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output={run}/jobs/report/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=1440
#SBATCH --wckey=submitit
"""


def launch(run: Path, *arguments: str, stage: str = "pipeline") -> int:
    return vlm(["launch", stage, "demo", f"run={run}", *OVERRIDES, *arguments])


def sbatch_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def test_dry_run_for_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a run"
    assert launch(run, "--cluster", "slurm", "--dry-run") == 0
    graph, train, evaluation, merge, report = capsys.readouterr().out.split("\n\n")
    assert graph == f"train -> eval -> merge -> report on slurm, run {run}"
    given = " ".join(OVERRIDES)
    quoted = re.sub(r"=(/\S+ run/\S+)", r"='\1'", TRAIN_HEADER.format(run=run))
    assert train == f"{quoted}vlm train demo 'run={run}' {given}"
    assert report == re.sub(r"=(/\S+ run/\S+)", r"='\1'", REPORT_HEADER.format(run=run)) + f"vlm report '{run}'\n"
    for text, before, command in ((evaluation, "TRAIN", "eval"), (merge, "EVAL", "merge")):
        assert f"#SBATCH --dependency=afterok:JOB_OF_{before}\n" in text and "#SBATCH --gpus-per-node=1\n" in text
        assert text.endswith(f"\nvlm {command} demo 'run={run}' {given} eval.adapter=latest")
    assert not run.exists()


def test_dry_run_elsewhere_and_of_one_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(tmp_path, "--dry-run", "eval.adapter=mine") == 0
    shown = capsys.readouterr().out
    assert "on local" in shown and "SBATCH" not in shown and "eval.adapter=latest" not in shown
    # by itself, an evaluation is the recipe's own: of the base where no adapter is named
    assert launch(tmp_path, "--dry-run", stage="eval") == 0
    assert capsys.readouterr().out.splitlines()[2:] == [f"vlm eval demo run={tmp_path} {' '.join(OVERRIDES)}"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_pipeline(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(tmp_path, f"adapter.method={method}", "--dry-run") == 0
    graph, *jobs = capsys.readouterr().out.split("\n\n")
    stages = graph.splitlines()[0].split(" on ")[0].split(" -> ")
    assert len(stages) == len(jobs) and stages[0] == "train" and stages[-1] == "report"
    answers = jobs[stages.index("eval")].strip()
    if method in ("projector", "full"):
        assert stages == ["train", "export", "eval", "report"]
        assert jobs[1].strip().endswith(f" --out {tmp_path}/model") and answers.endswith(f"model.base={tmp_path}/model")
    else:
        assert answers.endswith("eval.adapter=latest")
        assert ("merge" in stages) != ("cannot be merged" in graph)
        assert ("merge" in stages) == (method in ("lora", "qlora", "tokens", "ia3"))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch that keeps what it is given, numbering jobs from 1; returns the folder of the kept files."""
    commands, kept = tmp_path / "bin", tmp_path / "kept"
    commands.mkdir()
    kept.mkdir()
    count = f'n=$(($(ls {kept} | wc -l) + 1)); cp "$1" {kept}/$n; echo "Submitted batch job $n"'
    for name, body in (("srun", "exit 1"), ("sbatch", count)):
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return kept


def test_submission_is_what_the_dry_run_shows(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert launch(run, "--cluster", "slurm", "--dry-run") == 0
    shown = capsys.readouterr().out.split("\n\n")[1:]
    assert launch(run, "--cluster", "slurm") == 0
    assert capsys.readouterr().out == "train: job 1\neval: job 2\nmerge: job 3\nreport: job 4\n"
    for number, text in enumerate(shown, 1):
        sent = (slurm / str(number)).read_text()
        assert sbatch_lines(sent) == [re.sub("JOB_OF_.*", str(number - 1), line) for line in sbatch_lines(text)]
        assert "srun " in sent and "--kill-on-bad-exit=0 --wait=60 --cpus-per-task=12 " in sent
        command, *teardown = [line for line in sent.splitlines() if line and not line.startswith("#")][-4:]
        assert command.startswith("srun ")
        assert teardown == [
            "code=$?",
            'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$code"',
        ]
    assert (run / "jobs" / "train").stat().st_mode & 0o777 == 0o700


def test_a_job_ends_with_the_code_of_its_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        in_job(["report", str(tmp_path / "none")])
    assert ended.value.code == 2
    in_job(["train", "--help"])


def test_a_job_leaves_the_stop_signal_to_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(arguments: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGUSR2)
        return 0

    monkeypatch.setattr("launch.pipeline.run_command", command)
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        in_job(["train"])
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == []


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("trian", [], "no such stage; choose one of train, export, eval, merge, report, pipeline"),
        ("eval", ['eval.data=""'], "eval.data: empty"),
        ("merge", ["adapter.method=full"], "adapter.method=full leaves no adapter; `vlm launch export`"),
        ("merge", ["adapter.method=prefix"], "what adapter.method=prefix learns cannot be merged"),
        ("export", [], "adapter.method=lora leaves an adapter"),
        ("train", ["--cluster", "slrum"], "cluster.kind"),
        ("train", ["--cluster", "slurm"], "no sbatch"),
        ("train", ['name="a\\ntouch /tmp/owned"', "--cluster", "slurm", "--dry-run"], "holds a line break"),
    ],
)
def test_bad_input(
    stage: str, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch(tmp_path / "run", *arguments, stage=stage) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_local_stage_runs_as_a_job_and_its_failure_is_the_command_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    assert launch(tmp_path / "run", stage="report") == 2
    shown = capsys.readouterr()
    assert "[1/1] report" in shown.out and "stage report failed with exit code 2" in shown.err
    result = {
        "task": "exact", "name": "ru", "split": "test", "lang": "ru", "protocol": "direct", "model": "base", "n": 1,
        "score": 1.0, "correct": 1.0, "scorer": "exact", "prompt": "{q}", "generation": {}, "dataset": {},
        "by_type": {}, "untranslated": 0, "predictions": "",
    }  # fmt: skip
    folder = tmp_path / "run" / "eval" / "ru"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    assert launch(tmp_path / "run", stage="report") == 0
    assert (tmp_path / "run" / "report.html").exists()
