"""The one interceptor around every call: request id, log line, and errors as `google.rpc.Status`."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from grpc_status import rpc_status

from pyserve.errors import status_name
from pyserve.server.status import StatusTeller

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Wraps handlers of all four arities.

    Args:
        statuses: says what clients are told of errors.
        on_end: called with method, status and seconds of each call.
    """

    def __init__(self, statuses: StatusTeller, on_end: Callable[[str, str, float], None]) -> None:
        self._statuses = statuses
        self._on_end = on_end
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """The handler of a call, wrapped; None where there is no such call, which gRPC answers itself."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        behaviour, make = _parts(handler)
        wrapped = (
            self._streaming(method, behaviour) if handler.response_streaming else self._single(method, behaviour)
        )
        return make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def wait_idle(self) -> None:
        """Return when no call runs."""
        await self._idle.wait()

    def _single(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        async def call(request: Any, context: Any) -> Any:
            async with self._call(method, context):
                return await behaviour(request, context)

        return call

    def _streaming(self, method: str, behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._call(method, context), aclosing(behaviour(request, context)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    yield response

        return call

    @asynccontextmanager
    async def _call(self, method: str, context: Any) -> AsyncIterator[None]:
        request_id = uuid.uuid4().hex
        begin = time.monotonic()
        outcome = "OK"
        self._running += 1
        self._idle.clear()
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        try:
            yield
        except grpc.aio.AbortError:
            outcome = "ABORTED_BY_HANDLER"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "CANCELLED"
            raise
        except Exception as error:
            outcome = status_name(error)
            await self._abort(error, method, request_id, context)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
            elapsed_s = time.monotonic() - begin
            self._on_end(method, outcome, elapsed_s)
            level = logging.DEBUG if outcome == "OK" else logging.INFO
            log.log(
                level, "call method=%s code=%s ms=%.1f request_id=%s", method, outcome, elapsed_s * 1e3, request_id
            )

    async def _abort(self, error: Exception, method: str, request_id: str, context: Any) -> None:
        """Answer the call with the error; raises gRPC's AbortError."""
        status = rpc_status.to_status(self._statuses.tell(error, method, request_id))
        metadata = (*status.trailing_metadata, (REQUEST_ID_KEY, request_id))
        await context.abort(status.code, status.details, metadata)


def _parts(handler: Any) -> tuple[Any, Any]:
    """A handler's function and the maker of handlers of its arity."""
    if handler.request_streaming and handler.response_streaming:
        return handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler
