"""Bounded thread pools: blocking work leaves the event loop, so that health and watchers always answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from pyserve.errors import ResourceExhaustedError

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """A thread pool with a limit on how many calls may wait for a thread.

    Args:
        name: what the pool is for; appears in thread names and in the error.
        threads: calls that run at once.
        max_waiting: calls that may wait; one more is refused.
    """

    def __init__(self, name: str, threads: int, max_waiting: int) -> None:
        self._name = name
        self._limit = threads + max_waiting
        self._max_waiting = max_waiting
        self._pending = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"pyserve-{name}")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, computed in a thread.

        A caller that is cancelled withdraws a call that has not begun; one that has begun runs to its end unseen.

        Raises:
            ResourceExhaustedError: where too many calls wait already.
        """
        with self._lock:
            if self._pending >= self._limit:
                raise ResourceExhaustedError(
                    f"too many calls wait for {self._name}: the limit is {self._max_waiting}",
                    retry_delay_s=1.0,
                    metadata={"limit": str(self._max_waiting)},
                )
            self._pending += 1
        call = partial(function, *args, **kwargs)
        future = self._executor.submit(copy_context().run, call)  # so that log lines know their request
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Refuse new work, drop what waits; threads end when the work in them does."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1


class Pools:
    """The server's pools, apart by how long their work lasts, so that slow work never delays quick work."""

    def __init__(self, *, max_waiting: int) -> None:
        self.quick = Pool("requests", 8, max_waiting)
        self.slow = Pool("datasets", 4, max_waiting)
        self.pictures = Pool("pictures", 2, max_waiting)  # decoded to be shown, of any size that may be
        self.insight = Pool("insight", 2, max_waiting)  # minutes of the processor's time each
        self.export = Pool("exports", 1, max_waiting)  # a process with a gigabyte each

    def close(self) -> None:
        """Close all of them."""
        for pool in (self.quick, self.slow, self.pictures, self.insight, self.export):
            pool.close()
