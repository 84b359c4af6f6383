"""Pools: bounded, apart from each other, and out of the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pyserve.errors import ResourceExhaustedError
from pyserve.server.pools import Pool


async def test_results_and_errors_come_back() -> None:
    pool = Pool("work", 2, 10)
    assert await pool.run(divmod, 7, 2) == (3, 1)
    assert await pool.run(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 1, 0)
    pool.close()


async def test_one_more_than_may_wait_is_refused_and_room_comes_back() -> None:
    pool, go_on = Pool("work", 1, 2), threading.Event()
    calls = [asyncio.create_task(pool.run(go_on.wait, 20)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match="too many calls wait for work: the limit is 2") as info:
        await pool.run(go_on.wait, 20)
    assert info.value.retry_delay_s
    go_on.set()
    assert await asyncio.gather(*calls) == [True] * 3
    assert await pool.run(int, "7") == 7
    pool.close()


async def test_a_cancelled_call_that_waits_is_withdrawn() -> None:
    pool, go_on, ran = Pool("work", 1, 5), threading.Event(), threading.Event()
    first = asyncio.create_task(pool.run(go_on.wait, 20))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(pool.run(ran.set))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    assert await first
    assert await pool.run(int, "1") == 1
    assert not ran.is_set()
    pool.close()
