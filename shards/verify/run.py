"""The full check of a dataset folder: every byte against its digest, every sample, every image."""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

from shards.ahead import cores
from shards.dataset import check_size
from shards.errors import BadInput
from shards.files import UNFINISHED, json_text, local_folder, sha256_file
from shards.info import DATASET_FILE, DatasetInfo, FileInfo, ShardInfo, read_info
from shards.verify.shard import CHANGED, Problem, ShardReport, check_shard, problem_of
from shards.verify.unique import repeats

# A worker process is worth its start (0.3 s) for so many bytes.
_BYTES_PER_WORKER = 256 * 1024 * 1024


def verify(
    folder: Path | str,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
    decode: bool = False,
) -> list[Problem]:
    """All problems of a dataset folder, none when it is whole; the same ones in the same order for any `workers`.

    `progress` gets the number of samples checked. `workers` is the number of processes, by default as many as the
    machine's cores and the size of the dataset call for. `decode` decodes every image to its last row.
    """
    if workers is not None and workers < 1:
        raise BadInput(f"--workers is {workers}; at least 1 is wanted")
    folder = local_folder(folder)
    try:
        info = read_info(folder)
    except BadInput as error:
        return [problem_of(DATASET_FILE, error, folder)]
    problems = [*_described(folder, info), *_strays(folder, info), *_damaged(folder, info.files)]
    reports = []
    for report in _reports(folder, info.shards, workers or _default_workers(info), decode, progress):
        problems += report.problems
        reports.append(report)
    problems += repeats(folder, info.shards, reports)
    if not any(report.problems for report in reports):
        problems += _counts(info, reports)
    return problems


def _described(folder: Path, info: DatasetInfo) -> Iterator[Problem]:
    # what it says has its own digest; this finds what says nothing, such as a space too many or a lost last line end
    if (folder / DATASET_FILE).read_bytes() != json_text(info.to_json()).encode():
        yield Problem(DATASET_FILE, "bytes have changed since it was built, though it says the same")


def _strays(folder: Path, info: DatasetInfo) -> Iterator[Problem]:
    if (folder / UNFINISHED).exists():
        yield Problem(UNFINISHED, "the dataset is being written, or its writing was interrupted")
    known = {file.file for shard in info.shards for file in (shard.tar, shard.index)}
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".tar", ".index.json")) and path.name not in known:
            yield Problem(path.name, f"not part of the dataset: {DATASET_FILE} does not list it")


def _damaged(folder: Path, files: Iterable[FileInfo]) -> Iterator[Problem]:
    for file in files:
        try:
            check_size(folder, file)
            if sha256_file(folder / file.file) != file.sha256:
                yield Problem(file.file, CHANGED)
        except (BadInput, OSError) as error:
            yield problem_of(file.file, error, folder)


def _default_workers(info: DatasetInfo) -> int:
    size = sum(shard.tar.bytes for shard in info.shards)
    return max(1, min(cores(), size // _BYTES_PER_WORKER))


def _reports(
    folder: Path,
    shards: tuple[ShardInfo, ...],
    workers: int,
    decode: bool,
    progress: Callable[[int], None] | None,
) -> Iterator[ShardReport]:
    """One report a shard, in their order."""
    workers = min(workers, len(shards))
    starts = accumulate((shard.samples for shard in shards), initial=0)
    if workers <= 1:
        for shard, start in zip(shards, starts, strict=False):
            at = None if progress is None else partial(_shifted, progress, start)
            yield check_shard(folder, shard, decode, at)
        return
    # The caller may have threads, which a fork would leave stuck: the workers start afresh.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts_to_the_parent)
    done = 0
    try:
        for report in pool.map(partial(check_shard, folder, decode=decode), shards):
            yield report
            done += report.samples
            if progress:
                progress(done)
    finally:
        pool.shutdown(cancel_futures=True)


def _shifted(progress: Callable[[int], None], start: int, done: int) -> None:
    progress(start + done)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _counts(info: DatasetInfo, reports: list[ShardReport]) -> Iterator[Problem]:
    for name in ("samples", "questions", "images"):
        wanted, found = getattr(info, name), sum(getattr(report, name) for report in reports)
        if found != wanted:
            yield Problem(DATASET_FILE, f"{name} is {wanted} and the shards hold {found}")
