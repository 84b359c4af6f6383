"""Each value is made once, a failure leaves nothing, the least recently used goes first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyserve.errors import InvalidArgumentError, ResourceExhaustedError
from pyserve.inference.loading_cache import LoadingCache


def fail() -> int:
    raise RuntimeError("no")


def test_least_recently_used_goes_first() -> None:
    cache: LoadingCache[str, int] = LoadingCache(2)
    for key, value in (("a", 1), ("b", 2)):
        assert cache.get(key, lambda value=value: value) == value  # type: ignore[misc]
    assert cache.get("a", fail) == 1  # now b is the older one
    cache.get("c", lambda: 3)
    assert list(cache.keys()) == ["a", "c"]
    assert cache.get("b", lambda: 20) == 20
    cache.discard("b")
    cache.discard("never there")
    assert list(cache.keys()) == ["c"]


def test_concurrent_callers_wait_for_one_load() -> None:
    cache: LoadingCache[str, object] = LoadingCache(1)
    loads: list[int] = []
    started, go = threading.Event(), threading.Event()

    def load() -> object:
        loads.append(1)
        started.set()
        assert go.wait(10)
        return object()

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.get, "x", load) for _ in range(8)]
        assert started.wait(10)
        go.set()
        values = {id(future.result(10)) for future in futures}
    assert len(values) == 1
    assert len(loads) == 1


def test_a_failed_load_reaches_all_who_wait_and_leaves_nothing() -> None:
    cache: LoadingCache[str, int] = LoadingCache(1)
    started, go = threading.Event(), threading.Event()

    def load() -> int:
        started.set()
        assert go.wait(10)
        return fail()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "x", load)
        assert started.wait(10)
        second = pool.submit(cache.get, "x", lambda: 7)
        while not second.running() and not second.done():
            pass
        go.set()
        with pytest.raises(RuntimeError, match="no"):
            first.result(10)
        # the second either waited for the failure or came after it and loaded by itself
        assert second.exception(10) is not None or second.result() == 7
    cache.discard("x")
    assert cache.get("x", lambda: 5) == 5


def test_loads_of_other_keys_do_not_wait_and_leave_no_more_than_allowed() -> None:
    cache: LoadingCache[int, int] = LoadingCache(2)
    barrier = threading.Barrier(4)

    def load(key: int) -> int:
        barrier.wait(10)  # passes only where all four load at once
        return key

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda key: cache.get(key, lambda: load(key)), range(4))) == [0, 1, 2, 3]
    assert len(cache.keys()) == 2


def test_capacity_is_checked() -> None:
    with pytest.raises(InvalidArgumentError, match=r"capacity: got 0, expected ≥ 1"):
        LoadingCache(0)


def test_values_have_weights() -> None:
    cache: LoadingCache[str, int] = LoadingCache(10, lambda value: value)
    for key, value in (("a", 4), ("b", 4)):
        cache.get(key, lambda value=value: value, weight=value)  # type: ignore[misc]
    cache.get("c", lambda: 5, weight=2)  # heavier than was thought: known once it is there
    assert list(cache.keys()) == ["b", "c"]
    assert cache.get("huge", lambda: 50, weight=50) == 50
    assert list(cache.keys()) == ["huge"]
    assert cache.find("c") is None
    assert cache.find("huge") == 50
    assert list(cache.values()) == [50]


def test_what_is_pinned_stays() -> None:
    cache: LoadingCache[str, int] = LoadingCache(10, lambda value: value)
    cache.get("a", lambda: 4, weight=4, pin=True)
    cache.get("b", lambda: 4, weight=4)
    cache.get("c", lambda: 4, weight=4)
    assert list(cache.keys()) == ["a", "c"]
    cache.get("c", fail, pin=True)  # pinned later
    with pytest.raises(ResourceExhaustedError, match="no room for 4 bytes: the limit is 10, and a, c stay loaded"):
        cache.get("d", lambda: 4, weight=4)
    assert cache.get("e", lambda: 2, weight=2) == 2
    assert cache.discard("a")
    assert not cache.discard("a")
    assert cache.get("d", lambda: 4, weight=4) == 4
    assert list(cache.keys()) == ["c", "e", "d"]


def test_using_a_value_keeps_it() -> None:
    cache: LoadingCache[str, int] = LoadingCache(2)
    cache.get("a", lambda: 1)
    cache.get("b", lambda: 2)
    assert cache.find("a") == 1
    cache.get("c", lambda: 3)
    assert list(cache.keys()) == ["a", "c"]
    assert cache.find("never there") is None
