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
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from pyserve.errors import InvalidArgumentError, status_name
from pyserve.server.handlers import parts
from pyserve.server.logs import enter_request
from pyserve.server.status import StatusTeller
from pyserve.server.tracing import Tracing

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Wraps handlers of all four arities.

    Args:
        statuses: says what clients are told of errors.
        on_end: called with method, status and seconds of each call.
        tracing: gets a span of each call; None for no traces.
    """

    def __init__(
        self, statuses: StatusTeller, on_end: Callable[[str, str, float], None], tracing: Tracing | None = None
    ) -> None:
        self._statuses = statuses
        self._on_end = on_end
        self._tracing = tracing
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
        behaviour, make = parts(handler)
        behaviour = _reading(behaviour, handler)
        wrapped = (
            self._streaming(method, behaviour) if handler.response_streaming else self._single(method, behaviour)
        )
        return make(wrapped, response_serializer=handler.response_serializer)

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
        enter_request(request_id)
        begin = time.monotonic()
        outcome, failure = "OK", None
        self._running += 1
        self._idle.clear()
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        span = None
        if self._tracing is not None:
            span = self._tracing.call(method, request_id, context.invocation_metadata())
        try:
            try:
                yield
            except grpc.aio.AbortError:
                outcome = "ABORTED_BY_HANDLER"
                raise
            except (asyncio.CancelledError, GeneratorExit):
                outcome = "CANCELLED"
                raise
            except Exception as error:
                outcome, failure = status_name(error), error
            finally:  # before the answer: who has it finds the call counted
                self._ended(method, outcome, time.monotonic() - begin, request_id)
                if self._tracing is not None and span is not None:
                    self._tracing.call_ended(span, outcome)
            if failure is not None:
                await self._abort(failure, method, request_id, context)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _ended(self, method: str, outcome: str, elapsed_s: float, request_id: str) -> None:
        self._on_end(method, outcome, elapsed_s)
        level = logging.DEBUG if outcome == "OK" else logging.INFO
        log.log(
            level, "call method=%s code=%s ms=%.1f request_id=%s", method, outcome, elapsed_s * 1e3, request_id
        )

    async def _abort(self, error: Exception, method: str, request_id: str, context: Any) -> None:
        """Answer the call with the error; raises gRPC's AbortError, or CancelledError where the caller left."""
        status = rpc_status.to_status(self._statuses.tell(error, method, request_id))
        metadata = (*status.trailing_metadata, (REQUEST_ID_KEY, request_id))
        try:
            await context.abort(status.code, status.details, metadata)
        except grpc.aio.InternalError:  # it went at this moment, which gRPC would log as an error of ours
            raise asyncio.CancelledError from None


class _Messages:
    """A call's stream of requests, read from bytes one by one; one that cannot be read does not end it."""

    def __init__(self, stream: AsyncIterator[bytes], read: Callable[[bytes], Any]) -> None:
        self._stream, self._read = aiter(stream), read

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Any:
        return self._read(await anext(self._stream))


def _reading(behaviour: Callable[[Any, Any], Any], handler: Any) -> Callable[[Any, Any], Any]:
    """The behaviour, given bytes: gRPC itself would answer those that cannot be read with an unexplained error."""
    deserialize = handler.request_deserializer
    if deserialize is None:
        return behaviour

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            expected = "the message that the call's .proto file tells"
            raise InvalidArgumentError.field("request", f"{len(data)} bytes that are none", expected) from None

    if handler.request_streaming:
        return lambda stream, context: behaviour(_Messages(stream, read), context)
    return lambda data, context: behaviour(read(data), context)
