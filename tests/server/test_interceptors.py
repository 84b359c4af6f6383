"""The interceptor: every arity, errors as google.rpc.Status, one request id, no server paths, no stack traces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pyserve.errors import NotFoundError, ResourceExhaustedError
from pyserve.server.interceptors import REQUEST_ID_KEY, CallInterceptor
from pyserve.server.status import StatusTeller

SECRET = Path("/srv/secret-place")


class Echo:
    """A service of all four arities on bytes; "fail …" raises."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    @staticmethod
    def _check(request: bytes) -> bytes:
        if request == b"fail known":
            raise NotFoundError(f"{SECRET}/models/x does not exist", metadata={"resource": "models/x"})
        if request == b"fail retry":
            raise ResourceExhaustedError("too much", retry_delay_s=1.5)
        if request == b"fail unknown":
            raise ZeroDivisionError(f"in {SECRET}")
        return request

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        return self._check(request)

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([self._check(r) async for r in requests])

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            yield self._check(request)
            while request == b"endless":
                await asyncio.sleep(0.01)
                yield b"more"
        finally:
            self.closed.set()

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield self._check(request)


def _deserialize(data: bytes) -> bytes:
    if data == b"unreadable":
        raise DecodeError("Error parsing message")
    return data


class Running:
    """A server with the interceptor, and a channel to it."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str, float]] = []
        self.interceptor = CallInterceptor(StatusTeller([SECRET]), lambda *call: self.ended.append(call))
        self.echo = Echo()
        self._server = grpc.aio.server(interceptors=[self.interceptor])
        makers = {
            "unary_unary": grpc.unary_unary_rpc_method_handler,
            "stream_unary": grpc.stream_unary_rpc_method_handler,
            "unary_stream": grpc.unary_stream_rpc_method_handler,
            "stream_stream": grpc.stream_stream_rpc_method_handler,
        }
        handlers = {
            name: make(getattr(self.echo, name), request_deserializer=_deserialize)
            for name, make in makers.items()
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self) -> Running:
        await self._server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self._blocking = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        self._blocking.close()
        await self._server.stop(None)

    async def call(self, arity: str, request: bytes) -> bytes:
        """All that comes back, to a blocking client: grpc.aio's own loses the status where it still sends."""

        def call() -> bytes:
            method = getattr(self._blocking, arity)(f"/test.Echo/{arity}")
            answer = method(iter([request, b"!"]) if arity.startswith("stream") else request, timeout=10)
            return b"".join(answer) if arity.endswith("stream") else bytes(answer)

        return await asyncio.to_thread(call)


ARITIES = ("unary_unary", "stream_unary", "unary_stream", "stream_stream")


@pytest.mark.parametrize("arity", ARITIES)
async def test_answers_pass(arity: str) -> None:
    async with Running() as running:
        answer = await running.call(arity, b"hello")
    assert answer == {"unary_unary": b"hello", "unary_stream": b"firsthello"}.get(arity, b"hello!")
    ((method, outcome, seconds),) = running.ended
    assert (method, outcome) == (f"/test.Echo/{arity}", "OK")
    assert 0 <= seconds < 10


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize(
    ("request_bytes", "code", "sentence"),
    [
        (b"fail known", grpc.StatusCode.NOT_FOUND, "models/x does not exist"),
        (
            b"unreadable",
            grpc.StatusCode.INVALID_ARGUMENT,
            "request: got '10 bytes that are none', ",
        ),
        (b"fail retry", grpc.StatusCode.RESOURCE_EXHAUSTED, "too much"),
        (b"fail unknown", grpc.StatusCode.INTERNAL, "internal error; see the server's log for request "),
    ],
)
async def test_errors(
    arity: str,
    request_bytes: bytes,
    code: grpc.StatusCode,
    sentence: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        async with Running() as running:
            with pytest.raises(grpc.RpcError) as info:
                await running.call(arity, request_bytes)
    error: Any = info.value
    assert error.code() == code
    assert [(method, outcome) for method, outcome, _ in running.ended] == [(f"/test.Echo/{arity}", code.name)]
    status: Any = rpc_status.from_call(error)
    assert status.message.startswith(sentence)
    assert "secret" not in str(status)
    details = {type(d): d for d in map(_unpack, status.details)}
    request_id = details[error_details_pb2.ErrorInfo].metadata["request_id"]
    assert dict(error.trailing_metadata())[REQUEST_ID_KEY] == request_id
    assert any(request_id in record.getMessage() for record in caplog.records)
    if code == grpc.StatusCode.INTERNAL:
        assert request_id in status.message
        assert "ZeroDivisionError" in caplog.text  # the log has what the client is not told
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert details[error_details_pb2.RetryInfo].retry_delay.ToMilliseconds() == 1500


def _unpack(detail: Any) -> Any:
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest):
        message = kind()
        if detail.Unpack(message):
            return message
    raise AssertionError(detail)


async def test_an_unknown_call_is_grpcs_own_answer() -> None:
    async with Running() as running:
        method = running.channel.unary_unary("/test.Echo/nothing")
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await method(b"", timeout=10)
    assert info.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_client_that_leaves_ends_its_stream_and_idle_is_told() -> None:
    async with Running() as running:
        await asyncio.wait_for(running.interceptor.wait_idle(), 5)
        call = running.channel.unary_stream("/test.Echo/unary_stream")(b"endless")
        assert await call.read() == b"first"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(running.interceptor.wait_idle(), 0.2)
        call.cancel()
        await asyncio.wait_for(running.echo.closed.wait(), 5)
        await asyncio.wait_for(running.interceptor.wait_idle(), 5)


async def test_a_caller_that_goes_while_it_is_told_of_an_error_is_no_error() -> None:
    class Context:
        def set_trailing_metadata(self, metadata: Any) -> None:
            pass

        def invocation_metadata(self) -> Any:
            return ()

        async def abort(self, *_: Any) -> None:
            raise grpc.aio.InternalError("Failed execute_batch")

    async def fails(request: Any, context: Any) -> None:
        raise NotFoundError("none")

    async def continuation(details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(fails)

    ended: list[tuple[str, str, float]] = []
    interceptor = CallInterceptor(StatusTeller(), lambda *call: ended.append(call))
    details = SimpleNamespace(method="/x/Y")
    handler = await interceptor.intercept_service(continuation, details)
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_unary(b"", Context())
    assert [call[1] for call in ended] == ["NOT_FOUND"]
    await asyncio.wait_for(interceptor.wait_idle(), 5)
