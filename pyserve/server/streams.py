"""Streams in which many requests are answered at once, each as soon as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


async def as_done(
    requests: AsyncIterable[Request], answer: Callable[[Request], Coroutine[Any, Any, Response]], limit: int
) -> AsyncIterator[Response]:
    """Answers in the order in which they are done.

    While `limit` requests have no answer that was taken, no more are read, so that a sender that is faster than
    the answers is slowed down by its connection and not refused.

    Args:
        requests: what to answer; an error in it ends the stream.
        answer: makes an answer, for up to `limit` requests at once; cancelled where the stream ends early, and an
            error in it ends the stream.
    """
    outcomes: asyncio.Queue[Callable[[], Response | None]] = asyncio.Queue()
    room = asyncio.Semaphore(limit)
    running: set[asyncio.Task[Response]] = set()

    def done(task: asyncio.Task[Response]) -> None:
        running.discard(task)
        outcomes.put_nowait(task.result)

    async def read() -> None:
        iterator = aiter(requests)
        while True:
            await room.acquire()
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                break
            task = asyncio.create_task(answer(request))
            running.add(task)
            task.add_done_callback(done)
        if running:
            await asyncio.wait(running)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda task: outcomes.put_nowait(task.result))
    try:
        while True:
            outcome = (await outcomes.get())()
            if outcome is None:  # the reader's
                return
            room.release()
            yield outcome
    finally:
        for task in (reader, *running):
            task.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
