"""Calls per second and at once, counted for each identity by itself."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pyserve.errors import ResourceExhaustedError

_MOST_REMEMBERED = 10_000


@dataclass
class _Bucket:
    tokens: float
    time: float


class RateLimit:
    """Token buckets: `per_s` calls each second in the long run, `burst` at once.

    Args:
        per_s: 0 means no limit.
        burst: at least 1.
        clock: seconds that only go forward.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = max(burst, 1.0)
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # least recently used first

    def delay_s(self, key: str) -> float:
        """Take one call: 0 where it may go, else the seconds after which one may."""
        if not self._per_s:
            return 0.0
        now = self._clock()
        bucket = self._buckets.setdefault(key, _Bucket(self._burst, now))
        self._buckets.move_to_end(key)
        if len(self._buckets) > _MOST_REMEMBERED:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.time) * self._per_s)
        bucket.time = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._per_s
        bucket.tokens -= 1
        return 0.0


class CallLimits:
    """What one identity may do. Belongs to one event loop.

    Args:
        per_s: calls per second; 0 means no limit. Bursts of two seconds' worth pass.
        at_once: calls under way, streams among them; 0 means no limit.
    """

    def __init__(self, per_s: float, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = RateLimit(per_s, 2 * per_s, clock)
        self._per_s = per_s
        self._at_once = at_once
        self._running: Counter[str] = Counter()

    def enter(self, identity: str) -> None:
        """Begin a call, to be ended with `leave`.

        Raises:
            ResourceExhaustedError: tells the limit and when to try again.
        """
        if self._at_once and self._running[identity] >= self._at_once:
            raise ResourceExhaustedError(
                f"{identity} has {self._running[identity]} calls under way, the limit (max_calls_at_once) is "
                f"{self._at_once}",
                retry_delay_s=1.0,
                metadata={"limit": "max_calls_at_once", "value": str(self._at_once)},
            )
        delay_s = self._rate.delay_s(identity)
        if delay_s:
            raise ResourceExhaustedError(
                f"{identity} calls too often, the limit (max_calls_per_s) is {self._per_s:g} per second",
                retry_delay_s=delay_s,
                metadata={"limit": "max_calls_per_s", "value": f"{self._per_s:g}"},
            )
        self._running[identity] += 1

    def leave(self, identity: str) -> None:
        """End a call."""
        self._running[identity] -= 1
        if not self._running[identity]:
            del self._running[identity]
