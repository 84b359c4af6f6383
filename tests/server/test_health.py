"""Health: status now, changes to any number of watchers, and the end of their streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from pyserve.errors import NotFoundError
from pyserve.server.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, Health


def request(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def test_check() -> None:
    health = Health(["a.B"])
    assert (await health.Check(request(), None)).status == NOT_SERVING
    await health.set_serving(True)
    for name in ("", "a.B"):
        assert (await health.Check(request(name), None)).status == SERVING
    with pytest.raises(NotFoundError, match=r"no service 'c'; there are a\.B"):
        await health.Check(request("c"), None)


async def test_watchers_hear_every_change_and_one_that_leaves_takes_nobody_along() -> None:
    health = Health(["a.B"])
    watchers = [health.Watch(request(name), None) for name in ("", "a.B", "a.B")]
    assert [(await anext(w)).status for w in watchers] == [NOT_SERVING] * 3
    await watchers.pop().aclose()
    waiting = [asyncio.ensure_future(anext(w)) for w in watchers]
    await asyncio.sleep(0)
    await health.set_serving(True)
    assert [(await w).status for w in waiting] == [SERVING] * 2
    unknown = health.Watch(request("c"), None)
    assert (await anext(unknown)).status == SERVICE_UNKNOWN


async def test_closing_ends_the_streams_after_the_last_status() -> None:
    health = Health(["a.B"])
    await health.set_serving(True)
    heard: list[int] = []

    async def watch() -> None:
        async for answer in health.Watch(request(), None):
            heard.append(answer.status)

    task = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    await health.set_serving(False)
    await health.close()
    await asyncio.wait_for(task, 5)
    assert heard == [SERVING, NOT_SERVING]
