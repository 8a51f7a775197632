"""Merges killed with SIGKILL at seeded moments: no folder looks finished and is not; a restart gives the same bytes.

Each merge is a fork of a process that has everything loaded.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from shards.files import MANIFEST, verify_manifest
from tests.torn import CHANGES, Clock
from tests.vlm.merge.proof_models import lora, write_adapter, write_base
from vlm.merge.plan import MergePlan
from vlm.merge.run import Checks, Telling, merge

# of these, so many while the folder is put in its place
MOMENTS, LATE, SEED = 20, 6, 7
EVENTS = CHANGES | {"fcntl.flock", "os.rmdir"}
WRITERS = ("vlm.merge.stream", "vlm.merge.output", "shards.files")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def start(plan: MergePlan, folder: Path, kill_at: int = 0) -> int:
    """Merge in a child that dies at moment `kill_at` (0: never); its exit code, or minus the signal."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        clock = Clock(kill_at, folder, EVENTS)
        clock.install(WRITERS)
        # a moment at each block that is read, too: then writing is under way
        merge(plan, Checks(probes=1), telling=Telling(written=lambda done, total: clock.tick()))
        (folder / "moments").write_text(str(clock.now))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def drive(folder: Path) -> None:
    """The driver: kills merges, finishes them, reports what it found."""
    base = write_base(folder / "base")
    adapters = [write_adapter(base, folder / f"adapter{seed}", lora(), seed) for seed in (0, 1)]
    for name, adapter in zip(("before", "whole"), adapters, strict=True):
        (folder / name).mkdir()
        assert start(MergePlan(base, [adapter], folder / name / "out"), folder / name) == 0
    before, whole = (files(folder / name / "out") for name in ("before", "whole"))
    # the last of them are removals, of which another run may have one more or less
    last = int((folder / "whole" / "moments").read_text()) - 2
    late = 2 * LATE
    moments = random.Random(SEED)
    chosen = moments.sample(range(1, last - late), MOMENTS - LATE) + moments.sample(range(last - late, last), LATE)
    report = []
    for i, moment in enumerate(chosen):
        here = folder / f"killed-{moment}"
        here.mkdir()
        plan = MergePlan(base, [adapters[1]], here / "out")
        if i % 2 or moment >= last - late:
            # of another adapter, which is to be replaced
            shutil.copytree(folder / "before" / "out", plan.out)
        codes = [start(plan, here, moment)]
        left = files(plan.out)
        looks = not (plan.out / MANIFEST).exists() or not verify_manifest(plan.out)
        codes.append(start(plan, here))
        (here / "moments").unlink()
        report.append({
            "moment": moment, "codes": codes, "sound": looks and left in ({}, before, whole),
            "same": files(plan.out) == whole, "left": sorted(path.name for path in here.iterdir()),
            "went_on": left == {} or left == before,
        })  # fmt: skip
    (folder / "report.json").write_text(json.dumps({"differ": before != whole, "killed": report}))


def test_killed_at_seeded_moments(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs" / "report.json").read_text())
    assert report["differ"] and len(report["killed"]) == MOMENTS
    assert sum(each["went_on"] for each in report["killed"]) > MOMENTS / 2
    for each in report["killed"]:
        assert each["codes"] == [-9, 0], (each, done.stderr)
        assert each["sound"] and each["same"] and each["left"] == ["out"], each


if __name__ == "__main__":
    (root := Path(sys.argv[1])).mkdir()
    drive(root)
