from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pyserve.data.parallel import map_in_order


def test_results_come_in_order() -> None:
    def slow_first(value: int) -> int:
        time.sleep(0.002 * (5 - value % 5))
        return value * value

    assert list(map_in_order(slow_first, range(50), threads=4)) == [v * v for v in range(50)]


def test_it_works_at_once() -> None:
    barrier = threading.Barrier(3, timeout=30)
    assert list(map_in_order(lambda _: barrier.wait() >= 0, range(3), threads=3)) == [True] * 3


def test_it_reads_ahead_a_little_only() -> None:
    taken = 0

    def values() -> Iterator[int]:
        nonlocal taken
        for value in range(10_000):
            taken += 1
            yield value

    results = map_in_order(abs, values(), threads=2)
    assert next(results) == 0
    assert taken <= 8
    results.close()


def test_an_error_ends_it() -> None:
    done = []

    def work(value: int) -> None:
        if value == 3:
            raise KeyError(value)
        done.append(value)

    with pytest.raises(KeyError):
        list(map_in_order(work, range(1000), threads=2))
    assert len(done) < 20


def test_closing_waits_for_what_runs() -> None:
    running = threading.active_count()
    results = map_in_order(lambda value: time.sleep(0.05), range(100), threads=3)
    next(results)
    results.close()
    assert threading.active_count() == running
