"""Whether anybody still wants an answer that takes long to make."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pyserve.errors import CancelledError, DeadlineExceededError
from pyserve.server.pools import Pool
from pyserve.server.prediction import deadline_of

T = TypeVar("T")
ShouldStop = Callable[[], bool]


async def run_for(context: Any, pool: Pool, work: Callable[[ShouldStop], T]) -> T:
    """The result of work in a thread, which is asked to stop when the caller is gone or its deadline has passed.

    Args:
        context: of the call.
        pool: where it runs.
        work: asks its argument now and then; raises CancelledError where that says so.

    Raises:
        DeadlineExceededError: the deadline passed, even before the work began.
        What `work` raises, and `Pool.run`.
    """
    deadline = deadline_of(context)
    gone = threading.Event()

    def should_stop() -> bool:
        return gone.is_set() or time.monotonic() >= deadline

    def run() -> T:
        try:
            if should_stop():
                raise CancelledError("nobody waits for the answer any more")
            return work(should_stop)
        except CancelledError as error:
            if time.monotonic() >= deadline:
                raise DeadlineExceededError(f"the call's deadline has passed: {error.message}") from None
            raise

    try:
        return await pool.run(run)
    finally:
        gone.set()
