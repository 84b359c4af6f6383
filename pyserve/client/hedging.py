"""A second attempt of a call that has not been answered for a while, as gRFC A6 describes hedging.

gRPC's C core, under Python, knows `retryPolicy` and ignores `hedgingPolicy` (a test says so), hence this. A call
that is hedged must change nothing on the server: the first answer counts, the other attempt is cancelled.
"""

from __future__ import annotations

import time

from pyserve.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError

_QUIET_S = 1.0  # where a server that has enough says no time


class Hedge:
    """When a client makes second attempts.

    Args:
        after_s: how long the first has not been answered by then, seconds.

    Raises:
        InvalidArgumentError: names `hedge_after_s`.
    """

    def __init__(self, after_s: float) -> None:
        if not after_s > 0:
            raise InvalidArgumentError.field("hedge_after_s", after_s, "more than 0 seconds, or nothing")
        self.after_s = after_s
        self._quiet_until = 0.0

    @property
    def may_begin(self) -> bool:
        """Whether a second attempt may be made now: not while a server has asked to be left in peace."""
        return time.monotonic() >= self._quiet_until

    def goes_on(self, error: BaseException) -> bool:
        """Whether, one attempt having failed, the other's answer is still worth waiting for.

        It is where the failure says something about a server; not where it says something about the request.
        """
        if isinstance(error, ResourceExhaustedError):
            self._quiet_until = time.monotonic() + (error.retry_delay_s or _QUIET_S)
        return isinstance(error, UnavailableError | ResourceExhaustedError)


def hedge_of(after_s: float | None) -> Hedge | None:
    """None for no second attempts."""
    return None if after_s is None else Hedge(after_s)
