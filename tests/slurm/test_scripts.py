"""The sbatch scripts without a Slurm: headers as golden texts, the calls they make, arguments that are no shell."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).parent.parent.parent / "slurm"
RECORD = 'printf "%s\\0" "$(basename "$0")" "$@" >>"$CALLS"; printf "\\n" >>"$CALLS"; '
HOSTILE = ["optim.lr=1e-4", "run=a b", "name='x' \"y\" $HOME * $(touch owned) `touch owned` ; touch owned", "", "--"]
JOB = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "3"}

HEADERS = {
    "train": "job-name=ruvlm-train nodes=1 ntasks-per-node=8 gres=gpu:8 cpus-per-task=12 mem=0 time=24:00:00 requeue "
    "signal=USR2@120 output=logs/%x-%j.out open-mode=append",
    "eval": "job-name=ruvlm-eval array=0-7 ntasks=1 gres=gpu:1 cpus-per-task=12 mem=96G time=04:00:00 requeue "
    "signal=USR2@120 output=logs/%x-%A-%a.out open-mode=append",
    "translate": "job-name=ruvlm-translate array=0-7 ntasks=1 gres=gpu:1 cpus-per-task=12 mem=64G time=08:00:00 "
    "requeue output=logs/%x-%A-%a.out open-mode=append",
    "shards": "job-name=ruvlm-shards array=0 ntasks=1 cpus-per-task=32 mem=64G time=08:00:00 requeue "
    "output=logs/%x-%A-%a.out open-mode=append",
    "merge": "job-name=ruvlm-merge ntasks=1 cpus-per-task=4 mem=4G time=02:00:00 requeue output=logs/%x-%j.out "
    "open-mode=append",
    "pipeline": "job-name=ruvlm-pipeline ntasks=1 cpus-per-task=1 mem=8G time=00:30:00 output=logs/%x-%j.out",
    "env": "",
}


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for fake commands, with a `vlm` that records its arguments and exits as $VLM_EXIT says."""
    executable(tmp_path / "bin" / "vlm", RECORD + '[ "$1" = requeue ] || exit "${VLM_EXIT:-0}"')
    executable(tmp_path / "bin" / "srun", '"${@:3}"')
    executable(tmp_path / "bin" / "scontrol", 'printf "n1\\nn2\\n"')
    return tmp_path / "bin"


def executable(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def script(name: str, commands: Path, *args: str, path: Path | None = None, **env: str) -> tuple[int, list[list[str]]]:
    """Run a script with the fake commands first on PATH; its exit code, and the calls it made."""
    calls = commands.parent / "calls"
    foreign = ("SLURM", "SBATCH", "MASTER", "RUVLM")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    own = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls)}
    command = ["bash", str(path or SLURM / f"{name}.sh"), *args]
    done = subprocess.run(command, cwd=commands.parent, env={**clean, **own, **env}, capture_output=True, timeout=60)
    lines = calls.read_text("utf-8").split("\0\n")[:-1] if calls.exists() else []
    assert not (commands.parent / "owned").exists()
    return done.returncode, [line.split("\0") for line in lines]


def test_headers() -> None:
    found = {}
    for path in SLURM.glob("*.sh"):
        found[path.stem] = " ".join(re.findall(r"^#SBATCH --(\S+)$", path.read_text("utf-8"), re.MULTILINE))
        assert len(path.read_text("utf-8").splitlines()) <= 60, f"{path}: no longer short"
    assert found == HEADERS


@pytest.mark.parametrize("code", [0, 2, 75])
def test_train_without_slurm_hands_arguments_and_exit_code_through(commands: Path, code: int) -> None:
    expected = (code, [["vlm", "train", "my recipe.yaml", *HOSTILE]])
    assert script("train", commands, "my recipe.yaml", *HOSTILE, VLM_EXIT=str(code)) == expected


def test_train_takes_the_demo_recipe_when_none_is_named(commands: Path) -> None:
    assert script("train", commands) == (0, [["vlm", "train", "demo"]])


def test_the_named_environment_is_activated_or_missed(commands: Path, tmp_path: Path) -> None:
    venv = tmp_path / "my venv"
    executable(venv / "bin" / "vlm", RECORD)
    (venv / "bin" / "activate").write_text(f'PATH="{venv}/bin:$PATH"\n')
    executable(commands / "vlm", "exit 9")
    assert script("train", commands, "r", RUVLM_VENV=str(venv)) == (0, [["vlm", "train", "r"]])
    assert script("merge", commands, "r", RUVLM_VENV="absent")[0] == 1


@pytest.mark.parametrize("name", ["train", "eval", "merge", "translate", "pipeline"])
def test_without_a_vlm_a_script_says_what_is_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    os.symlink(shutil.which("dirname") or "", tmp_path / "bin" / "dirname")
    bash = shutil.which("bash") or "bash"
    command, env = [bash, str(SLURM / f"{name}.sh"), "r"], {"PATH": f"{tmp_path}/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "RUVLM_VENV" in done.stderr


@pytest.mark.parametrize("code", [0, 1, 75, 137])
def test_train_starts_the_ranks_and_leaves_what_follows_to_the_policy(commands: Path, code: int) -> None:
    seen = '[[ "$MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK" == "n1 22960 3" ]] || exit 99; '
    executable(commands / "srun", RECORD + seen + '"${@:3}"')
    executable(commands / "scontrol", RECORD + 'printf "n1\\nn2\\n"')
    rank = ["vlm", "train", "r", *HOSTILE]
    calls = [["scontrol", "show", "hostnames", "n[1-2]"], ["srun", "--kill-on-bad-exit=0", "--wait=60", *rank], rank]
    if code:
        calls.append(["vlm", "requeue", str(code), "--stage", "train", "r", *HOSTILE])
    found = script("train", commands, "r", *HOSTILE, VLM_EXIT=str(code), SLURM_RESTART_COUNT="1", **JOB)
    assert found == (code, calls)


def test_a_copy_in_slurm_s_spool_finds_its_environment(commands: Path, tmp_path: Path) -> None:
    copy = tmp_path / "spool" / "slurm_script"
    copy.parent.mkdir()
    shutil.copy(SLURM / "merge.sh", copy)
    assert script("merge", commands, "r", path=copy, SLURM_SUBMIT_DIR=str(SLURM.parent), **JOB)[0] == 0
    assert script("merge", commands, "r", path=copy, SLURM_SUBMIT_DIR=str(tmp_path), **JOB)[0] == 1


def test_parts_follow_from_the_array(commands: Path) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", **JOB}
    assert script("eval", commands, "r", *HOSTILE, VLM_EXIT="140", **array) == (
        140,
        [["vlm", "eval", "--part", "3/8", "r", *HOSTILE], ["vlm", "requeue", "140", "--stage", "eval", "r", *HOSTILE]],
    )
    (commands.parent / "calls").unlink()
    again = {**array, "SLURM_ARRAY_TASK_COUNT": "1", "RUVLM_PARTS": "8"}
    assert script("translate", commands, "in", "--out", "out", VLM_EXIT="137", **again) == (
        137,
        [
            ["vlm", "translate", "--part", "3/8", "in", "--out", "out"],
            ["vlm", "requeue", "137", "--stage", "translate"],
        ],
    )


@pytest.mark.parametrize(
    ("given", "recipe"), [(["r", "a=b c", "--out", "o"], ["r", "a=b c"]), (["run", "--base", "b", "--out", "o"], [])]
)
def test_a_merge_s_options_are_not_the_policy_s(commands: Path, given: list[str], recipe: list[str]) -> None:
    expected = [["vlm", "merge", *given], ["vlm", "requeue", "137", "--stage", "merge", *recipe]]
    assert script("merge", commands, *given, VLM_EXIT="137", **JOB) == (137, expected)


def test_each_task_builds_its_line_of_the_sets(commands: Path, tmp_path: Path) -> None:
    sets = tmp_path / "my sets"
    sets.write_text("--reader a\n--images 'my images' --out \"o\" $(touch owned) `touch owned`; touch owned\n")
    expected = ["--images", "my images", "--out", "o", "$(touch", "owned)", "`touch", "owned`;", "touch", "owned"]
    assert script("shards", commands, str(sets), SLURM_ARRAY_TASK_ID="1", **JOB) == (
        0,
        [["vlm", "shards", "build", *expected]],
    )
    (commands.parent / "calls").unlink()
    assert script("shards", commands, str(sets), SLURM_ARRAY_TASK_ID="2", **JOB) == (2, [])


def test_the_pipeline_is_queued_without_this_job_s_own_settings(commands: Path) -> None:
    executable(commands / "vlm", RECORD + '[[ -z "${SLURM_JOB_ID:-}${SBATCH_MEM:-}" && $SLURM_CONF == c ]] || exit 9')
    found = script("pipeline", commands, "r", *HOSTILE, SLURM_CONF="c", SBATCH_MEM="1G", **JOB)
    assert found == (0, [["vlm", "launch", "pipeline", "--cluster", "slurm", "r", *HOSTILE]])
