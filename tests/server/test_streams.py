"""Streams of requests that are answered as they are done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from pyserve.server.streams import as_done


async def numbers(count: int, read: list[int] | None = None) -> AsyncIterator[int]:
    for i in range(count):
        if read is not None:
            read.append(i)
        yield i


async def test_answers_come_as_they_are_done() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def answer(i: int) -> int:
        await gates[i].wait()
        return i

    async with aclosing(as_done(numbers(3), answer, 3)) as answers:
        for i in (2, 0, 1):
            gates[i].set()
            assert await anext(answers) == i
        with pytest.raises(StopAsyncIteration):
            await anext(answers)


async def test_no_more_is_read_than_can_be_answered() -> None:
    read: list[int] = []
    running: list[int] = []
    most = 0
    gate = asyncio.Event()

    async def answer(i: int) -> int:
        nonlocal most
        running.append(i)
        most = max(most, len(running))
        await gate.wait()
        running.remove(i)
        return i

    async with aclosing(as_done(numbers(50, read), answer, 4)) as answers:
        first = asyncio.create_task(anext(answers))
        await asyncio.sleep(0.05)
        assert (len(read), len(running)) == (4, 4)
        gate.set()
        found = {await first}
        await asyncio.sleep(0.05)  # answers that nobody takes count as well
        assert len(read) <= 5
        found |= {i async for i in answers}
    assert found == set(range(50))
    assert most == 4


async def test_an_error_in_the_requests_ends_the_stream() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def answer(i: int) -> int:
        await asyncio.sleep(30)
        return i

    async with aclosing(as_done(broken(), answer, 4)) as answers:
        with pytest.raises(ConnectionError, match="gone"):
            await asyncio.wait_for(anext(answers), 5)


async def test_an_error_in_an_answer_ends_the_stream() -> None:
    async def answer(i: int) -> int:
        raise ValueError(i)

    async with aclosing(as_done(numbers(10), answer, 4)) as answers:
        with pytest.raises(ValueError, match="0"):
            await anext(answers)


async def test_a_stream_that_is_left_cancels_what_it_began() -> None:
    cancelled: list[int] = []

    async def answer(i: int) -> Any:
        try:
            await asyncio.sleep(0 if i == 0 else 30)
        except asyncio.CancelledError:
            cancelled.append(i)
            raise
        return i

    async with aclosing(as_done(numbers(5), answer, 3)) as answers:
        assert await anext(answers) == 0
        await asyncio.sleep(0)
    assert sorted(cancelled) in ([1, 2], [1, 2, 3])
    assert len(asyncio.all_tasks()) == 1


async def test_no_requests() -> None:
    async def answer(i: int) -> int:
        return i

    assert [i async for i in as_done(numbers(0), answer, 1)] == []
