"""Trying again while the server is unavailable, for so long and no longer."""

from __future__ import annotations

import random
import time

from pyserve.client.transport import Transport
from pyserve.errors import PyserveError

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0


class Backoff:
    """Pauses that double from try to try, with jitter so that clients do not come back all at once.

    Args:
        transport: sleeps.
        retry_s: how long after the first failure a try still makes sense.
        deadline: `time.monotonic()` value at which the whole call ends; None for never.
    """

    def __init__(self, transport: Transport, retry_s: float, deadline: float | None) -> None:
        self._transport = transport
        self._deadline = deadline
        self.restart(retry_s)

    def restart(self, retry_s: float) -> None:
        """Something worked: the next failure counts as the first."""
        self._retry_s = retry_s
        self._until: float | None = None
        self._delay_s = FIRST_DELAY_S

    async def pause(self, error: PyserveError) -> None:
        """Wait before the next try, at least as long as the server asks; raise `error` where that is too long."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._retry_s
        delay_s = max(self._delay_s * random.uniform(0.7, 1.3), error.retry_delay_s or 0.0)
        until = self._until if self._deadline is None else min(self._until, self._deadline)
        if now + delay_s > until:
            raise error
        await self._transport.sleep(delay_s)
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
