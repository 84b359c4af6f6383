"""Work on many files with threads, a bounded number at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MAX_THREADS = 32
_AHEAD = 4  # calls under way per thread: enough that none waits for the reader


def map_in_order(function: Callable[[T], R], values: Iterable[T], *, threads: int = 0) -> Generator[R, None, None]:
    """The results in order, computed ahead of the reader by a few; unlike `Executor.map`, never all at once.

    Closing the iterator, or an exception of the function, waits for the calls under way and drops the rest.

    Args:
        threads: calls that run at once; 0 means one per core.
    """
    workers = threads or min(len(os.sched_getaffinity(0)), _MAX_THREADS)
    with ThreadPoolExecutor(workers, thread_name_prefix="pyserve-data") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for value in values:
                waiting.append(pool.submit(function, value))
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
