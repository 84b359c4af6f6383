"""What the calls of all services share: one call, tried again where that helps, and lists in pages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import grpc

from pyserve.client.backoff import Backoff
from pyserve.client.hedging import Hedge
from pyserve.client.transport import Transport, deadline_after, left_until
from pyserve.errors import UnavailableError

# Calls that do real work before they answer (scan a folder, evaluate a model) may take this long by default.
WORK_TIMEOUT_S = 3600.0
PAGE_SIZE = 1000

Request = TypeVar("Request")
Response = TypeVar("Response")


class CallsBase:
    """See `calls.Calls`."""

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float,
        retry_s: float,
        reconnect_s: float,
        hedge: Hedge | None = None,
    ) -> None:
        self._transport = transport
        self._stubs = transport.stubs
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._reconnect_s = reconnect_s
        self._hedge = hedge

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def _pages(
        self, method: grpc.UnaryUnaryMultiCallable[Any, Any], request: Any, timeout_s: float | None
    ) -> AsyncGenerator[Any, None]:
        """All pages of a List call."""
        while True:
            page = await self._call(method, request, timeout_s)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
        *,
        repeatable: bool = True,
        hedged: bool = False,
    ) -> Response:
        """One call, tried again while the server is unavailable where a second try does no harm.

        Args:
            hedged: it changes nothing on the server, and may be made twice at once where the client hedges.
        """
        deadline = deadline_after(self._timeout_s if timeout_s is None else timeout_s)
        backoff = Backoff(self._transport, self._retry_s, deadline)
        while True:
            try:
                if hedged and self._hedge is not None:
                    return await self._transport.hedged(method, request, left_until(deadline), self._hedge)
                return await self._transport.unary(method, request, left_until(deadline))
            except UnavailableError as error:
                if not repeatable:
                    raise
                await backoff.pause(error)
