"""How long every training sample is: tokenised once by several processes, kept on disk."""

import contextlib
import fcntl
import hashlib
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from shards.ahead import cores
from shards.dataset import ShardDataset
from shards.errors import BadInput
from shards.files import atomic_file, parse_json
from shards.sample import Sample
from vlm.data.documents import Tokeniser
from vlm.data.images import Pixels

# changes when the counts of a sample would change although its text, template and tokenizer do not
_VERSION = 1
_FIELDS, _DIGEST = 3, 32
_CHUNK = 256
# below so many samples starting processes takes longer than they save
_ALONE = 2000
# shares of the text that a dialogue set never has unless its template or its length limit is wrong
_USUAL_SHARE = (0.01, 0.95)
_USUAL_CUT = 0.05


@dataclass(frozen=True)
class Lengths:
    """Of every sample in stored order: tokens, tokens that carry a loss, images of the tower; int32 (n,) each."""

    tokens: np.ndarray
    supervised: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def join(cls, parts: "Sequence[Lengths]") -> "Lengths":
        """Those of several sets, end to end."""
        tokens, supervised, images = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "supervised", "images")
        )
        return cls(tokens, supervised, images)


def cache_folder(configured: str) -> Path:
    """Where lengths are kept: `configured`, or ruvlm/lengths in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(configured) if configured else cache / "ruvlm" / "lengths"


def lengths_of(dataset: ShardDataset, tokeniser: Tokeniser, pixels: Pixels, folder: Path, workers: int = 0) -> Lengths:
    """The lengths of a set, from `folder` where its file is whole, else measured by `workers` processes.

    0 workers are as many as there are cores. Of several processes that ask at once on a machine one measures and the
    others wait for its file. Raises BadInput of the first sample that cannot be tokenised.
    """
    key = hashlib.sha256(
        f"{_VERSION} {dataset.digest} {tokeniser.digest} {pixels.size} {pixels.tiles}".encode()
    ).hexdigest()
    path = folder / f"{key}.lengths"
    counts = _read(path, len(dataset))
    if counts is None:
        with _alone(path):
            counts = _read(path, len(dataset))
            if counts is None:
                if os.path.lexists(path):
                    print(f"{path}: damaged; the lengths are measured again", file=sys.stderr)
                counts = measure(dataset, tokeniser, pixels, workers or cores())
                _write(path, counts)
    return Lengths(*counts.T)


def measure(dataset: ShardDataset, tokeniser: Tokeniser, pixels: Pixels, workers: int) -> np.ndarray:
    """Tokens, supervised tokens and images of every sample, int32 (n, 3)."""
    begun = time.perf_counter()
    # children write into memory that they share with us, so nothing is sent and nothing waits
    shared = mmap.mmap(-1, max(1, len(dataset) * _FIELDS * 4))
    counts = np.frombuffer(shared, np.int32, len(dataset) * _FIELDS).reshape(-1, _FIELDS)
    if workers == 1 or len(dataset) < _ALONE:
        _count(dataset, tokeniser, pixels, range(len(dataset)), counts)
        return counts
    _count_in_processes(dataset, tokeniser, pixels, workers, counts)
    seconds = time.perf_counter() - begun
    print(f"{dataset.folder}: {len(dataset):,} samples tokenised in {seconds:.0f} s by {workers} processes", flush=True)
    return counts


def check_lengths(lengths: Lengths, image_tokens: int, max_length: int, name: str) -> list[str]:
    """Lines that warn of an abnormal share of supervised or of cut samples; `name` is that of the set."""
    text = int(lengths.tokens.sum() - image_tokens * lengths.images.sum())
    share, cut = lengths.supervised.sum() / max(1, text), float((lengths.tokens >= max_length).mean())
    lines = []
    if not _USUAL_SHARE[0] <= share <= _USUAL_SHARE[1]:
        lines.append(
            f"{name}: {100 * share:.3g} % of the text tokens carry a loss, usual are {100 * _USUAL_SHARE[0]:.0f} to "
            f"{100 * _USUAL_SHARE[1]:.0f} %; look at data.template and data.max_length"
        )
    if cut > _USUAL_CUT:
        lines.append(f"{name}: {100 * cut:.3g} % of the samples are cut; raise data.max_length={max_length}")
    return lines


def _count_in_processes(
    dataset: ShardDataset, tokeniser: Tokeniser, pixels: Pixels, workers: int, counts: np.ndarray
) -> None:
    # a fork takes the tokenizer along; starting anew would import everything again in every process
    context = multiprocessing.get_context("fork")
    started = []
    try:
        for worker in range(workers):
            failures, ours = context.Pipe(duplex=False)
            places = [i for i in range(len(dataset)) if i // _CHUNK % workers == worker]
            child = context.Process(target=_child, args=(dataset, tokeniser, pixels, places, counts, ours), daemon=True)
            child.start()
            ours.close()
            started.append((child, failures))
        found = []
        for child, failures in started:
            with contextlib.suppress(EOFError):
                found.append(failures.recv())
            child.join()
            if child.exitcode:
                raise RuntimeError(f"a process that tokenised {dataset.folder} ended with code {child.exitcode}")
    finally:
        for child, _ in started:
            child.kill()
    if found:
        raise BadInput(min(found)[1])


def _child(
    dataset: ShardDataset,
    tokeniser: Tokeniser,
    pixels: Pixels,
    places: Sequence[int],
    counts: np.ndarray,
    failures: Connection,
) -> None:
    # a signal that asks the job for a checkpoint is for the parent
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = os.getppid()
    for at in range(0, len(places), _CHUNK):
        if os.getppid() != parent:
            return
        try:
            _count(dataset, tokeniser, pixels, places[at : at + _CHUNK], counts)
        except _Untokenisable as error:
            failures.send((error.place, str(error)))
            return


class _Untokenisable(BadInput):
    """BadInput of the sample at `place`."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


def _count(
    dataset: ShardDataset, tokeniser: Tokeniser, pixels: Pixels, places: Sequence[int], counts: np.ndarray
) -> None:
    for i, sample in zip(places, _texts(dataset, places), strict=True):
        try:
            size = dataset.entries[i].image_size
            document = tokeniser.document(sample, pixels.count(*size) if size else 1)
        except BadInput as error:
            raise _Untokenisable(f"{dataset.folder}: {error}", i) from error
        counts[i] = len(document), document.supervised, document.images


def _texts(dataset: ShardDataset, places: Sequence[int]) -> Iterator[Sample]:
    """Samples with no bytes in their images: those are nearly all of a tar and say nothing about its text."""
    ends = np.cumsum(dataset.shard_sizes)
    opened, handle = -1, None
    try:
        for i in places:
            entry, shard = dataset.entries[i], int(np.searchsorted(ends, i, side="right"))
            path = dataset.folder / dataset.info.shards[shard].tar.file
            if shard != opened:
                if handle:
                    handle.close()
                handle, opened = open(path, "rb", buffering=0), shard  # noqa: SIM115 - one for many samples
            assert handle is not None
            offset, size = entry.members["json"]
            obj = parse_json(os.pread(handle.fileno(), size, offset), f"{path}: {entry.key}.json")
            yield Sample.from_json(entry.key, obj, b"" if entry.image_ext else None, entry.image_ext)
    finally:
        if handle:
            handle.close()


def _read(path: Path, samples: int) -> np.ndarray | None:
    """What `_write` has kept; None where there is nothing or it is damaged. Numbers and a digest: nothing is parsed."""
    end = samples * _FIELDS * 4
    try:
        # anything else is not so much as opened: it may be endless
        if not path.is_file() or path.stat().st_size != end + _DIGEST:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    if data[end:] != _digest(path, data[:end]):
        return None
    counts = np.frombuffer(data[:end], "<i4").reshape(samples, _FIELDS)
    tokens, supervised, images = counts.T
    return counts if (supervised >= 0).all() and (supervised <= tokens).all() and (images >= 0).all() else None


def _digest(path: Path, payload: bytes) -> bytes:
    # with the name, so that a file of other settings is none of these
    return hashlib.sha256(path.name.encode() + payload).digest()


def _write(path: Path, counts: np.ndarray) -> None:
    """The numbers, int32 row by row, and a SHA-256 behind them; a folder that cannot be written costs only time."""
    payload = counts.astype("<i4").tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as handle:
            handle.write(payload + _digest(path, payload))
    except OSError as error:
        print(f"{path.parent}: lengths not kept ({error.strerror}); name another folder in data.cache", file=sys.stderr)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the lock goes with the process that holds it."""
    with contextlib.ExitStack() as stack:
        # where there are no locks everybody measures, and writes the same file
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(open(path.with_suffix(".lock"), "ab"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
