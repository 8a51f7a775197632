"""Work done ahead by threads, its results in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Handing over one by one would cost more than a small sample itself.
_CHUNK = 8
_CHUNKS_AHEAD = 2


def cores() -> int:
    """Cores that this process may use: a job's share, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(items: Iterable[T], work: Callable[[T], R], workers: int) -> Generator[list[R], None, None]:
    """`work` of every item in the order of `items`, a few results at a time; the lists are never empty.

    What `items` raises comes after the results of all items before it, so it does not depend on `workers`. When the
    caller stops early, at most the chunks in progress are still worked on.
    """

    def of_chunk(chunk: list[T]) -> list[R]:
        return [work(item) for item in chunk]

    source = _Chunks(items)
    pending: deque[Future[list[R]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for chunk in source:
            pending.append(pool.submit(of_chunk, chunk))
            if len(pending) > workers * _CHUNKS_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if source.failure is not None:
        raise source.failure


class _Chunks(Iterator[list[T]]):
    """Lists of up to `_CHUNK` items; an exception of the items ends them and is kept."""

    def __init__(self, items: Iterable[T]) -> None:
        self.items = iter(items)
        self.failure: Exception | None = None

    def __next__(self) -> list[T]:
        chunk: list[T] = []
        while self.failure is None and len(chunk) < _CHUNK:
            try:
                chunk.append(next(self.items))
            except StopIteration:
                break
            except Exception as failure:
                self.failure = failure
        if not chunk:
            raise StopIteration
        return chunk
