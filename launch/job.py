"""What starts inside a job of submitit: `python -m launch.job FOLDER`, in place of submitit's own entry.

submitit loads the pickle of whatever folder it is given, and ends the job at a stop signal. Here the pickle is loaded
only where nobody else can have written it, and stop signals wait until the command that obeys them has started.
"""

import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from submitit.core.job_environment import JobEnvironment
from submitit.core.submission import process_job
from submitit.core.utils import JobPaths

from shards.errors import BadInput
from vlm.stop import SIGNALS

# the job may start before its submission has given the pickle its name
_WAIT_SECONDS = 60.0


def check_private(folder: Path) -> None:
    """BadInput unless `folder` is our own, no link, and nobody else may write there."""
    _check(folder, stat.S_ISDIR, "folder")


def check_pickle(path: Path) -> None:
    """BadInput unless `path` and its folder are ours alone to write: loading a pickle runs what it says."""
    check_private(path.parent)
    _check(path, stat.S_ISREG, "file")


def _check(path: Path, kind: Callable[[int], bool], noun: str) -> None:
    about = path.lstat()
    if not kind(about.st_mode):
        raise BadInput(f"{path}: is no plain {noun}; remove it and submit again")
    if about.st_uid != os.geteuid():
        raise BadInput(f"{path}: belongs to another user (id {about.st_uid}); remove it and submit again")
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadInput(
            f"{path}: others may write it (mode {stat.S_IMODE(about.st_mode):o}); remove it and submit again"
        )


def clear(paths: JobPaths) -> None:
    """Remove what an earlier turn of this job left: submitit fails on half a result, and takes an old one for ours."""
    for path in (paths.result_pickle, paths.result_pickle.with_name(f"{paths.result_pickle.name}.save_tmp")):
        path.unlink(missing_ok=True)


def _arrived(path: Path) -> bool:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return path.exists()


def main() -> None:
    """Run the job whose folder is named on the command line; exit code 2 for one that is not ours."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    folder = os.environ["SUBMITIT_FOLDER"] = sys.argv[1]
    paths = JobEnvironment().paths
    try:
        check_private(Path(folder))
        if _arrived(paths.submitted_pickle):
            check_pickle(paths.submitted_pickle)
    except (BadInput, OSError) as error:
        print(f"vlm: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    clear(paths)
    process_job(folder)


if __name__ == "__main__":
    main()
