"""Limits per identity, on a clock of the test's own."""

from __future__ import annotations

import pytest

from pyserve.errors import ResourceExhaustedError
from pyserve.security.limits import CallLimits, RateLimit


class Clock:
    """Seconds that go forward when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_lets_its_rate_pass() -> None:
    clock = Clock()
    limit = RateLimit(10, 5, clock)
    assert [limit.delay_s("a") for _ in range(5)] == [0.0] * 5
    assert limit.delay_s("a") == pytest.approx(0.1)
    assert limit.delay_s("b") == 0.0  # another one's bucket
    clock.now += 0.125
    assert limit.delay_s("a") == 0.0
    passed = 0
    for _ in range(1000):  # ten seconds in hundredths
        clock.now += 0.01
        passed += not limit.delay_s("a")
    assert 99 <= passed <= 101


def test_a_clock_that_stands_still_or_a_long_pause_gives_no_more_than_the_burst() -> None:
    clock = Clock()
    limit = RateLimit(10, 5, clock)
    clock.now += 1e6
    assert sum(not limit.delay_s("a") for _ in range(100)) == 5


def test_buckets_do_not_pile_up() -> None:
    limit = RateLimit(1, 1, Clock())
    for i in range(30_000):
        limit.delay_s(str(i))
    assert len(limit._buckets) <= 10_000


def test_calls_at_once() -> None:
    limits = CallLimits(0, 2)
    limits.enter("a")
    limits.enter("a")
    with pytest.raises(
        ResourceExhaustedError, match=r"a has 2 calls under way, the limit \(max_calls_at_once\)"
    ) as e:
        limits.enter("a")
    assert e.value.retry_delay_s == 1.0
    assert e.value.metadata == {"limit": "max_calls_at_once", "value": "2"}
    limits.enter("b")
    limits.leave("a")
    limits.enter("a")


def test_calls_per_second_tell_when_to_try_again() -> None:
    clock = Clock()
    limits = CallLimits(2, 0, clock)
    for _ in range(4):
        limits.enter("a")
    with pytest.raises(ResourceExhaustedError, match="max_calls_per_s") as caught:
        limits.enter("a")
    assert caught.value.retry_delay_s == pytest.approx(0.5)
    clock.now += 0.5
    limits.enter("a")


def test_no_limit() -> None:
    limits = CallLimits(0, 0)
    for _ in range(10_000):
        limits.enter("a")
