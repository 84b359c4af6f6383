"""How a call reaches the server: blocking over grpc, or asynchronous over grpc.aio, behind one protocol.

The methods of `BlockingTransport` are coroutine functions that never suspend: see the package's docstring.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, ParamSpec, Protocol, TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc

from pyserve.client.connection import Connection
from pyserve.client.hedging import Hedge
from pyserve.client.status import error_from_rpc
from pyserve.errors import UnavailableError
from pyserve.v1 import datasets_pb2_grpc, insight_pb2_grpc, jobs_pb2_grpc, models_pb2_grpc, predict_pb2_grpc

# What grpc.aio says where it was sending at the moment the server ended the call; the server's own status is then
# lost (grpcio 1.85). An upload that is tried again gets it.
_SENDING_FAILED = "Internal error from Core"

_CLOSE_S = 5.0  # for closing a channel, which takes milliseconds

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")
P = ParamSpec("P")


class Stubs:
    """The stubs of all services on one channel, of grpc or grpc.aio."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.datasets = datasets_pb2_grpc.DatasetsStub(channel)
        self.jobs = jobs_pb2_grpc.JobsStub(channel)
        self.predict = predict_pb2_grpc.PredictStub(channel)
        self.models = models_pb2_grpc.ModelsStub(channel)
        self.insight = insight_pb2_grpc.InsightStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)


class Transport(Protocol):
    """What the calls need of the outside world. All methods raise the exceptions of pyserve.errors."""

    address: str
    stubs: Stubs

    async def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
    ) -> Response:
        """One request, one response."""

    async def hedged(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
        hedge: Hedge,
    ) -> Response:
        """As `unary`, with a second attempt where the first takes long; the loser is cancelled."""

    async def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Request, Response],
        requests: Iterator[Request],
        timeout_s: float | None,
    ) -> Response:
        """Many requests, made as they are sent, one response."""

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        """One request, many responses; closing the generator ends the call."""

    def exchange(
        self,
        method: grpc.StreamStreamMultiCallable[Request, Response],
        requests: Iterator[Request],
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        """Many requests, made as they are sent, many responses; closing the generator ends the call."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def work(self, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run something that blocks, such as reading files."""

    async def close(self) -> None:
        """Close the channel."""


class BlockingTransport:
    """Over grpc. Its coroutines block and never suspend; methods may be called from several threads."""

    def __init__(self, connection: Connection) -> None:
        self.address = connection.address
        self._channel = connection.open()
        self.stubs = Stubs(connection.bearing(self._channel))

    async def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
    ) -> Response:
        """One request, one response."""
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, timeout_s) from None

    async def hedged(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
        hedge: Hedge,
    ) -> Response:
        """As `unary`, with a second attempt where the first takes long; the loser is cancelled."""
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def begin(left_s: float | None) -> Any:
            call = method.future(request, timeout=left_s)
            call.add_done_callback(ended.put)
            return call

        deadline = deadline_after(timeout_s)
        running = [begin(timeout_s)]
        try:
            try:
                call = ended.get(timeout=hedge.after_s)
            except queue.Empty:
                if hedge.may_begin:
                    running.append(begin(left_until(deadline)))
                call = ended.get()
            while call.code() is not grpc.StatusCode.OK:
                running.remove(call)
                error = error_from_rpc(call, self.address, timeout_s)
                if not (hedge.goes_on(error) and running):
                    raise error
                call = ended.get()
            return call.result()  # type: ignore[no-any-return]
        finally:
            for call in running:  # one that has ended stays as it is
                call.cancel()

    async def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Request, Response],
        requests: Iterator[Request],
        timeout_s: float | None,
    ) -> Response:
        """Many requests, made in a thread of gRPC's as they are sent, one response."""
        try:
            return method(requests, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, timeout_s) from None

    async def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        """One request, many responses."""
        async with aclosing(self._responses(method(request, timeout=timeout_s), timeout_s)) as responses:
            async for response in responses:
                yield response

    async def exchange(
        self,
        method: grpc.StreamStreamMultiCallable[Request, Response],
        requests: Iterator[Request],
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        """Many requests, made in a thread of gRPC's as they are sent, many responses."""
        async with aclosing(self._responses(method(requests, timeout=timeout_s), timeout_s)) as responses:
            async for response in responses:
                yield response

    async def _responses(self, call: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        try:
            for response in call:
                yield response
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, timeout_s) from None
        finally:
            call.cancel()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)  # noqa: ASYNC251  # no loop runs here

    async def work(self, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run it here."""
        return function(*args, **kwargs)

    async def close(self) -> None:
        """Close the channel; calls under way end."""
        # Ctrl-C while gRPC begins a stream leaves that without the thread that would end it, and gRPC waits for it
        # for ever (grpcio 1.85)
        closing = threading.Thread(target=self._channel.close, name="pyserve-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


class AioTransport:
    """Over grpc.aio, on the event loop that runs when it is made."""

    def __init__(self, connection: Connection) -> None:
        self.address = connection.address
        self._channel = connection.open_aio()
        self.stubs = Stubs(connection.bearing(self._channel))

    async def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
    ) -> Response:
        """One request, one response."""
        call: Any = method(request, timeout=timeout_s)
        return await self._answer(call, timeout_s)  # type: ignore[no-any-return]

    async def hedged(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
        hedge: Hedge,
    ) -> Response:
        """As `unary`, with a second attempt where the first takes long; the loser is cancelled."""
        deadline = deadline_after(timeout_s)
        attempts = {asyncio.create_task(self.unary(method, request, timeout_s))}
        running = attempts
        try:
            done, running = await asyncio.wait(running, timeout=hedge.after_s)
            if not done and hedge.may_begin:
                running = {*running, asyncio.create_task(self.unary(method, request, left_until(deadline)))}
                attempts = {*attempts, *running}
            while True:
                for task in sorted(done, key=lambda task: task.exception() is not None):  # an answer first
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not (hedge.goes_on(error) and running):
                        raise error
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in attempts:
                task.cancel()

    async def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Request, Response],
        requests: Iterator[Request],
        timeout_s: float | None,
    ) -> Response:
        """Many requests, read in a thread as they are sent, one response."""
        call: Any = method(_in_thread(requests), timeout=timeout_s)  # type: ignore[arg-type]
        try:
            return await call  # type: ignore[no-any-return]
        except grpc.aio.AioRpcError as error:
            if error.details() == _SENDING_FAILED:
                raise UnavailableError(f"the connection to {self.address} broke off while sending") from None
            raise error_from_rpc(error, self.address, timeout_s) from None

    async def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        """One request, many responses."""
        async with aclosing(self._responses(method(request, timeout=timeout_s), timeout_s)) as responses:
            async for response in responses:
                yield response

    async def exchange(
        self,
        method: grpc.StreamStreamMultiCallable[Request, Response],
        requests: Iterator[Request],
        timeout_s: float | None,
    ) -> AsyncGenerator[Response, None]:
        """Many requests, read in a thread as they are sent, many responses."""
        call: Any = method(_in_thread(requests), timeout=timeout_s)  # type: ignore[arg-type]
        async with aclosing(self._responses(call, timeout_s)) as responses:
            async for response in responses:
                yield response

    async def _responses(self, call: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        try:
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, timeout_s) from None
        finally:
            call.cancel()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def work(self, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run it in a thread."""
        return await asyncio.to_thread(function, *args, **kwargs)

    async def close(self) -> None:
        """Close the channel; calls under way end."""
        await self._channel.close(None)

    async def _answer(self, call: Any, timeout_s: float | None) -> Any:
        try:
            return await call
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, timeout_s) from None


def deadline_after(timeout_s: float | None) -> float | None:
    """When a call that begins now must have ended, in the clock of `time.monotonic`."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def left_until(deadline: float | None) -> float | None:
    """Seconds that are left."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


async def _in_thread(requests: Iterator[Request]) -> AsyncIterator[Request]:
    while (request := await asyncio.to_thread(next, requests, None)) is not None:
        yield request
