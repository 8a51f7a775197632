"""`vlm launch`: the graph, sbatch headers as golden texts, submission to a Slurm whose commands are recorded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch as package
from launch.cli import run as vlm
from launch.fence import alone
from launch.recipe import load
from shards.errors import BadInput
from vlm.model.adapter import METHODS

# two nodes of 8 A100 and 96 cores
OVERRIDES = [
    "cluster.partition=gpu", "cluster.account=nlp", "cluster.qos=long", "cluster.constraint=a100&ib",
    "cluster.nodes=2", "cluster.gpus_per_node=8", "cluster.cpus_per_task=12", "cluster.mem_gb=0",
    "cluster.eval_parts=8", "cluster.sbatch={exclusive: '', reservation: spring}",
    "cluster.stages={merge: {partition: cpu, time_minutes: 120}}", "model.base=models/none",
]  # fmt: skip

TRAIN_HEADER = """\
#SBATCH --account=nlp
#SBATCH --constraint='a100&ib'
#SBATCH --cpus-per-task=12
#SBATCH --error={run}/jobs/train/%j_0_log.err
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=demo-train
#SBATCH --mem=0
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output={run}/jobs/train/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=spring
#SBATCH --signal=USR2@130
#SBATCH --time=1440
"""

EVAL_HEADER = """\
#SBATCH --account=nlp
#SBATCH --array=0-7%8
#SBATCH --constraint='a100&ib'
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_TRAIN
#SBATCH --error={run}/jobs/eval/%A_%a_0_log.err
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --job-name=demo-eval
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output={run}/jobs/eval/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=spring
#SBATCH --signal=USR2@60
#SBATCH --time=1440
"""

REPORT_HEADER = """\
#SBATCH --account=nlp
#SBATCH --constraint='a100&ib'
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterany:JOB_OF_TRAIN:JOB_OF_EVAL:JOB_OF_MERGE
#SBATCH --error={run}/jobs/report/%j_0_log.err
#SBATCH --exclusive
#SBATCH --job-name=demo-report
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output={run}/jobs/report/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=spring
#SBATCH --signal=USR2@60
#SBATCH --time=1440
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folders that look like the model and the datasets of the demo."""
    monkeypatch.chdir(tmp_path)
    for name in ("ru-test/dataset.json", "runs/demo/data/ru-train/dataset.json", "models/none/assembly.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    return f"eval.data={tmp_path / 'ru-test'}"


def launch(run: Path, *arguments: str, stage: str = "pipeline") -> int:
    return vlm(["launch", stage, "demo", f"run={run}", *OVERRIDES, *arguments])


def sbatch_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def test_dry_run_for_slurm(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a run"
    assert launch(run, data, "--cluster", "slurm", "--dry-run") == 0
    graph, train, evaluation, merge, report = capsys.readouterr().out.split("\n\n")
    assert graph == f"train -> eval -> merge -> report on slurm, run {run}"
    for text, golden in ((train, TRAIN_HEADER), (evaluation, EVAL_HEADER), (report, REPORT_HEADER)):
        quoted = re.sub(r"=(/\S+ run/\S+)", r"='\1'", golden.format(run=run))
        assert "".join(f"{line}\n" for line in sbatch_lines(text)) == quoted
    # a stage of its own on a node without GPUs, which needs little, whatever the others ask for
    assert "--partition=cpu\n" in merge and "--time=120\n" in merge
    assert "--mem=4GB\n" in merge and "--cpus-per-task=4\n" in merge
    assert "gpus" not in "".join(sbatch_lines(merge)) and "afterok:JOB_OF_EVAL\n" in merge
    parts = [line for line in evaluation.splitlines() if line.startswith("vlm")]
    assert [line[-10:] for line in parts] == [f"--part {i}/8" for i in range(8)]
    assert all(" eval.adapter=latest " in line for line in parts)
    assert not run.exists()


def test_dry_run_elsewhere_and_of_one_stage(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(tmp_path, data, "--dry-run", "eval.adapter=mine", "cluster.eval_parts=1") == 0
    shown = capsys.readouterr().out
    assert "on local" in shown and "SBATCH" not in shown and "eval.adapter=latest" not in shown
    # by itself, an evaluation is the recipe's own: of the base where no adapter is named
    assert launch(tmp_path, data, "--dry-run", "cluster.eval_parts=1", stage="eval") == 0
    (line,) = capsys.readouterr().out.splitlines()[2:]
    assert line.startswith("vlm eval demo ") and "eval.adapter" not in line


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_pipeline(
    method: str, tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert launch(tmp_path, data, f"adapter.method={method}", "--dry-run") == 0
    graph, *jobs = capsys.readouterr().out.split("\n\n")
    stages = graph.splitlines()[0].split(" on ")[0].split(" -> ")
    assert len(stages) == len(jobs) and stages[0] == "train" and stages[-1] == "report"
    answers = jobs[stages.index("eval")].strip().splitlines()[0]
    if method in ("projector", "full"):
        assert stages == ["train", "export", "eval", "report"]
        assert jobs[1].strip().endswith(f" --out {tmp_path}/model") and f" model.base={tmp_path}/model " in answers
    else:
        assert " eval.adapter=latest " in answers
        assert ("merge" in stages) != ("cannot be merged" in graph)
        assert ("merge" in stages) == (method in ("lora", "qlora", "tokens", "ia3"))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch that keeps what it is given, numbering jobs from 1, and refuses a fourth where `full` exists; returns the
    folder of the kept files."""
    commands, kept = tmp_path / "bin", tmp_path / "kept"
    commands.mkdir()
    kept.mkdir()
    refuse = f'if [ -e {tmp_path}/full ] && [ "$n" -eq 4 ]; then echo "sbatch: error: queue full" >&2; exit 1; fi; '
    number = f"n=$(($(ls {kept} | wc -l) + 1)); "
    sbatch = f'{number}{refuse}cp "$1" {kept}/$n; echo "Submitted batch job $n"'
    cancel = f'echo "$@" >{tmp_path}/cancelled'
    for name, body in (("srun", "exit 1"), ("squeue", "true"), ("sbatch", sbatch), ("scancel", cancel)):
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return kept


def test_submission_is_what_the_dry_run_shows(
    slurm: Path, tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = (data, "cluster.setup=[module load cuda/12.4]", "--cluster", "slurm")
    assert launch(run, *more, "--dry-run") == 0
    shown = capsys.readouterr().out.split("\n\n")[1:]
    assert launch(run, *more) == 0
    said = capsys.readouterr().out
    assert said == "train: job 1\neval: job 2, 8 tasks\nmerge: job 3\nreport: job 4\n"
    (recipe,) = (run / "jobs").glob("recipe-*.yaml")
    assert load(str(recipe)).cluster.constraint == "a100&ib"
    names = {"JOB_OF_TRAIN": "1", "JOB_OF_EVAL": "2", "JOB_OF_MERGE": "3"}
    for number, (stage, text) in enumerate(zip(("train", "eval", "merge", "report"), shown, strict=True), 1):
        sent = (slurm / str(number)).read_text()
        expected = [re.sub("JOB_OF_[A-Z]+", lambda match: names[match[0]], line) for line in sbatch_lines(text)]
        assert sbatch_lines(sent) == expected
        *setup, _, command, code, requeue, end = [
            line for line in sent.splitlines() if line and not line.startswith("#")
        ]
        assert setup[0] == "trap : TERM USR1 USR2" and setup[-1].startswith("eval 'module load cuda/12.4' || { ")
        assert (len(setup) == 3 and "MASTER_PORT" in setup[1]) == (stage == "train")
        cores = 4 if stage == "merge" else 12
        assert f" --kill-on-bad-exit=0 --wait=60 --cpus-per-task={cores} " in command and "-m launch.job" in command
        assert code == "code=$?" and end == 'exit "$code"'
        assert requeue.endswith(f'-m launch.cli requeue --stage {stage} "$code" {recipe}')
        assert (run / "jobs" / stage).stat().st_mode & 0o777 == 0o700
        assert {p.stat().st_mode & 0o777 for p in (run / "jobs" / stage).glob("*.pkl")} == {0o600}
    noted = (run / "jobs" / "jobs.jsonl").read_text().splitlines()
    assert len(noted) == 11 and '"job": "2_7"' in noted[8]
    assert f'"log": "{run}/jobs/eval/2_7_0_log.out"' in noted[8]


def test_in_a_container(slurm: Path, tmp_path: Path, data: str) -> None:
    image = "cluster.container={{image: '/i m/r.sif', kind: {}, mounts: ['/data:/data', '/w x:/w']}}"
    assert launch(tmp_path / "a", data, image.format("pyxis"), "--cluster", "slurm", stage="train") == 0
    assert launch(tmp_path / "b", data, image.format("apptainer"), "--cluster", "slurm", stage="train") == 0
    pyxis, apptainer = ((slurm / name).read_text() for name in "12")
    assert " '--container-image=/i m/r.sif' '--container-mounts=/data:/data,/w x:/w' python3 -u -m launch.job" in pyxis
    binds = "--bind /data:/data --bind '/w x:/w'"
    assert f" apptainer exec --nv {binds} '/i m/r.sif' python3 -u -m launch.job" in apptainer


def test_a_refused_job_takes_the_queued_ones_with_it(slurm: Path, tmp_path: Path, data: str) -> None:
    (tmp_path / "full").touch()
    with pytest.raises(BadInput, match="sbatch refused report: sbatch: error: queue full; nothing stays queued"):
        package.submit("demo", overrides=[f"run={tmp_path / 'run'}", *OVERRIDES, data, "cluster.kind=slurm"])
    assert (tmp_path / "cancelled").read_text() == "1 2 3\n"


def test_what_breaks_off_the_queueing_takes_the_queued_jobs_with_it(slurm: Path, tmp_path: Path, data: str) -> None:
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    (tmp_path / "run" / "jobs" / "eval").symlink_to(tmp_path)
    given = ["cluster.kind=slurm", f"run={tmp_path / 'run'}", *OVERRIDES, data]
    with pytest.raises(BadInput, match=r"eval: is no plain folder; .*; nothing stays queued"):
        package.submit("demo", overrides=given)
    assert (tmp_path / "cancelled").read_text() == "1\n"
    (tmp_path / "bin" / "scancel").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BadInput, match=r"eval: is no plain folder; .*; scancel failed: job 2 may stay queued"):
        package.submit("demo", overrides=given)
    # Ctrl-C
    (tmp_path / "run" / "jobs" / "eval").unlink()
    (tmp_path / "bin" / "scancel").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/cancelled\n')
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(sbatch.read_text() + f'[ "$n" -lt 5 ] || kill -INT {os.getpid()}\n')
    with pytest.raises(KeyboardInterrupt):
        package.submit("demo", overrides=given)
    assert (tmp_path / "cancelled").read_text().split()[:2] == ["3", "4"]


def test_what_is_queued_already_is_not_queued_twice(slurm: Path, tmp_path: Path, data: str) -> None:
    given = [f"run={tmp_path / 'run'}", *OVERRIDES, data, "cluster.kind=slurm"]

    def queued(*lines: str) -> None:
        script = tmp_path / "bin" / "squeue"
        script.write_text("#!/bin/sh\n" + ("".join(f"echo '{line}'\n" for line in lines) or "exit 1\n"))
        script.chmod(0o755)

    package.submit("demo", overrides=given)
    queued("1 demo-train", "2_0 demo-eval", "2_1 demo-eval", "4 demo-report")
    refused = r"already queued: job 1 \(train\), 2 \(eval\); wait for the end, or first scancel 1 2$"
    with pytest.raises(BadInput, match=refused):
        package.submit("demo", overrides=given)
    # another user's job of that number, an evaluation of another name, the old report
    queued("1 theirs", "2_0 demo-eval", "4 demo-report")
    package.submit("demo", ["train", "report"], given)
    package.submit("demo", ["eval"], [*given, "eval.name=other"])
    assert len(list(slurm.iterdir())) == 7
    queued()
    with pytest.raises(BadInput, match="squeue does not say whether its jobs are still queued"):
        package.submit("demo", overrides=given)
    with alone(tmp_path / "run"), pytest.raises(BadInput, match="another launcher is at work"):
        package.submit("demo", overrides=given)
    assert len(list(slurm.iterdir())) == 7


def test_submit_takes_a_recipe_and_gives_the_jobs(slurm: Path, tmp_path: Path, data: str) -> None:
    recipe = load("demo", [f"run={tmp_path / 'run'}", *OVERRIDES, data, "cluster.kind=slurm"])
    jobs = package.submit(recipe, stages=["train", "eval"])
    assert {stage: [job.job_id for job in of_stage] for stage, of_stage in jobs.items()} == {
        "train": ["1"],
        "eval": [f"2_{i}" for i in range(8)],
    }
    assert jobs["train"][0].num_tasks == 16


def test_the_package_is_light() -> None:
    code = "import sys, launch; sys.exit(' '.join({'torch', 'submitit', 'omegaconf', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("trian", [], "no such stage; choose one of shards, translate, train, export, eval, merge, report, pipeline"),
        ("eval", ['eval.data=""'], "eval.data: empty"),
        ("pipeline", ["eval.data=data/nowhere", "--cluster", "slurm"], "eval.data: data/nowhere holds no dataset.json"),
        ("train", ["data.train=data/nowhere"], "data.train: data/nowhere holds no dataset.json"),
        ("train", ["model.base=models/nowhere"], "model.base: models/nowhere holds no assembly.json"),
        ("train", ["cluster.time_minutes=20:00"], "YAML reads that to base 60"),
        ("shards", [], "`shards` names no raw set"),
        ("shards", ["data.train=''", "shards=[{reader: easy-vqaa, out: a}]"], "easy-vqaa"),
        ("merge", ["adapter.method=full"], "adapter.method=full leaves no adapter; `vlm launch export`"),
        ("merge", ["adapter.method=prefix"], "what adapter.method=prefix learns cannot be merged"),
        ("export", [], "adapter.method=lora leaves an adapter"),
        ("train", ["--cluster", "slrum"], "cluster.kind"),
        ("train", ["cluster.stages={mrege: {gpus: 1}}"], "cluster.stages: 'mrege' is no stage; choose of shards, "),
        ("train", ["--cluster", "slurm", "--dry-run", 'name="a\\ntouch /tmp/owned"'], "holds a line break"),
        ("train", ["--cluster", "slurm", "--dry-run", "run=a%j"], "Slurm reads % and \\"),
        ("train", ["--cluster", "slurm", "--dry-run", "run=a\\b"], "Slurm reads % and \\"),
    ],
)
def test_bad_input(
    stage: str, arguments: list[str], message: str, slurm: Path, tmp_path: Path, data: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert launch(tmp_path / "run", data, *arguments, stage=stage) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists() and not list(slurm.iterdir())


def test_without_slurm(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch(tmp_path / "run", data, "--cluster", "slurm") == 2
    assert "no sbatch and srun" in capsys.readouterr().err and not (tmp_path / "run").exists()
