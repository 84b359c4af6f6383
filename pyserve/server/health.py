"""`grpc.health.v1.Health` with any number of watchers.

grpcio-health-checking's own asyncio servicer forgets all watchers of a service when one of them leaves, and its
watch streams outlast a drain; hence this one, which has neither flaw and the same protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.errors import NotFoundError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc has no types of its own
    """Status of the whole server (the empty name) and of each service."""

    def __init__(self, services: Iterable[str]) -> None:
        self._status = dict.fromkeys(["", *services], NOT_SERVING)
        self._changed = asyncio.Condition()
        self._closed = False

    @property
    def is_serving(self) -> bool:
        """Whether the whole server is SERVING."""
        return bool(self._status[""] == SERVING)

    async def set_serving(self, serving: bool) -> None:
        """Set the status of all services and tell the watchers."""
        async with self._changed:
            self._status = dict.fromkeys(self._status, SERVING if serving else NOT_SERVING)
            self._changed.notify_all()

    async def close(self) -> None:
        """End the watch streams, after each has told the last status."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def Check(self, request: Any, context: Any) -> Any:
        """The status now."""
        status = self._status.get(request.service)
        if status is None:
            known = ", ".join(name for name in self._status if name)
            raise NotFoundError(f"no service {request.service!r}; there are {known}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The status now and whenever it changes; SERVICE_UNKNOWN for a name that is not ours."""
        told = None
        while True:
            async with self._changed:
                status = self._status.get(request.service, SERVICE_UNKNOWN)
                if status == told:
                    if self._closed:
                        return
                    await self._changed.wait()
                    continue
            told = status
            yield health_pb2.HealthCheckResponse(status=status)
