"""Second attempts of predictions, against a server whose first answers take long."""

from __future__ import annotations

# ruff: noqa: N802  # gRPC names the methods
import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from pyserve.client import Client
from pyserve.client.hedging import Hedge
from pyserve.client.transport import AioTransport
from pyserve.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from pyserve.v1 import predict_pb2, predict_pb2_grpc
from tests.client.fake import Driven, failing, unavailable
from tests.server.support import eventually

Behaviour = Callable[["Slow", grpc.ServicerContext, int], None]
AFTER_S = 0.3
TOKEN = "pyserve_of-mine"  # noqa: S105  # of no server


def answers(slow: Slow, context: grpc.ServicerContext, number: int) -> None:
    """At once."""


def hangs(slow: Slow, context: grpc.ServicerContext, number: int) -> None:
    """Until the client takes it back."""
    gone = threading.Event()
    context.add_callback(gone.set)
    assert gone.wait(30)
    slow.cancelled.append(number)


def waits(slow: Slow, context: grpc.ServicerContext, number: int) -> None:
    """For the test."""
    assert slow.go.wait(30)


def fails(code: grpc.StatusCode, *details: Any) -> Behaviour:
    fail = failing(code, "no", *details)
    return lambda slow, context, number: fail(context)


def full(delay_s: float) -> Behaviour:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(int(delay_s * 1000))
    return fails(grpc.StatusCode.RESOURCE_EXHAUSTED, retry)


class Slow(predict_pb2_grpc.PredictServicer):
    """Its attempts do what `plan` says, one after another; those beyond it answer."""

    def __init__(self) -> None:
        self.plan: list[Behaviour] = []
        self.tokens: list[str] = []
        self.cancelled: list[int] = []
        self.go = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        predict_pb2_grpc.add_PredictServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    @property
    def attempts(self) -> int:
        return len(self.tokens)

    def Predict(self, request: Any, context: Any) -> Any:
        number = len(self.tokens)
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        behaviour = self.plan[number] if number < len(self.plan) else answers
        behaviour(self, context, number)
        return predict_pb2.PredictResponse(model=f"models/m/versions/{number + 1}", predictions=[{}])

    def stop(self) -> None:
        self.go.set()
        self._server.stop(None).wait()


@pytest.fixture
def slow() -> Iterator[Slow]:
    server = Slow()
    yield server
    server.stop()


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, slow: Slow) -> Iterator[Any]:
    kind = Client if request.param == "blocking" else Driven
    made = kind(slow.address, token=TOKEN, timeout_s=20.0, retry_s=0.0, hedge_after_s=AFTER_S)
    yield made
    made.close()


def answering(client: Any, timeout_s: float = 20.0) -> int:
    """Which attempt a prediction was answered by, counted from 0."""
    model = client.predict("models/m", [b"picture"], timeout_s=timeout_s).model
    return int(model.rpartition("/")[2]) - 1


def test_a_second_attempt_answers_and_the_first_is_cancelled(client: Any, slow: Slow) -> None:
    slow.plan = [hangs]
    assert answering(client) == 1
    eventually(lambda: slow.cancelled == [0])
    assert slow.tokens == [f"Bearer {TOKEN}"] * 2


def test_the_first_may_still_win(client: Any, slow: Slow) -> None:
    def lets_go(slow: Slow, context: grpc.ServicerContext, number: int) -> None:
        slow.go.set()
        hangs(slow, context, number)

    slow.plan = [waits, lets_go]
    assert answering(client) == 0
    eventually(lambda: slow.cancelled == [1])


@pytest.mark.parametrize("kind", [Client, Driven])
def test_an_answer_in_time_is_asked_for_once(kind: Any, slow: Slow) -> None:
    client = kind(slow.address, retry_s=0.0, hedge_after_s=20.0)
    assert [answering(client) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert slow.attempts == 5
    client.close()


@pytest.mark.parametrize("failure", [full(30), lambda slow, context, number: unavailable(context)])
def test_a_second_attempt_that_finds_no_server_leaves_it_to_the_first(
    client: Any, slow: Slow, failure: Behaviour
) -> None:
    def fails_and_lets_go(slow: Slow, context: grpc.ServicerContext, number: int) -> None:
        slow.go.set()
        failure(slow, context, number)

    slow.plan = [waits, fails_and_lets_go]
    assert answering(client) == 0
    assert slow.attempts == 2


def test_a_server_that_is_full_is_left_in_peace(client: Any, slow: Slow) -> None:
    slow.plan = [full(60)]
    with pytest.raises(ResourceExhaustedError) as info:
        answering(client)
    assert info.value.retry_delay_s == 60
    slow.plan = [full(60), hangs]
    with pytest.raises(DeadlineExceededError):
        answering(client, timeout_s=4 * AFTER_S)
    assert slow.attempts == 2  # no second attempt
    eventually(lambda: slow.cancelled == [1])


def test_an_error_about_the_request_counts_at_once(client: Any, slow: Slow) -> None:
    slow.plan = [hangs, fails(grpc.StatusCode.INVALID_ARGUMENT)]
    with pytest.raises(InvalidArgumentError, match="no"):
        answering(client)
    eventually(lambda: slow.cancelled == [0])


def test_where_both_fail_the_last_failure_is_told(client: Any, slow: Slow) -> None:
    def after_it(slow: Slow, context: grpc.ServicerContext, number: int) -> None:
        waits(slow, context, number)
        unavailable(context)

    def first(slow: Slow, context: grpc.ServicerContext, number: int) -> None:
        slow.go.set()
        full(1)(slow, context, number)

    slow.plan = [after_it, first]
    with pytest.raises((UnavailableError, ResourceExhaustedError)):
        answering(client)
    assert slow.attempts == 2


def test_both_end_with_the_deadline(client: Any, slow: Slow) -> None:
    slow.plan = [hangs, hangs]
    with pytest.raises(DeadlineExceededError):
        answering(client, timeout_s=4 * AFTER_S)
    eventually(lambda: sorted(slow.cancelled) == [0, 1])


async def test_an_answer_counts_before_an_error_of_the_same_moment() -> None:
    for _ in range(20):
        transport, go, numbers = AioTransport.__new__(AioTransport), asyncio.Event(), itertools.count()

        async def unary(*_: Any, numbers: Any = numbers, go: asyncio.Event = go) -> str:
            if next(numbers) == 0:
                await go.wait()
                return "answer"
            go.set()
            raise UnavailableError("gone")

        transport.unary = unary  # type: ignore[method-assign]
        assert await transport.hedged(None, None, 20.0, Hedge(0.001)) == "answer"  # type: ignore[arg-type]


@pytest.mark.parametrize("after_s", [0, -1, float("nan")])
def test_times_that_are_none(after_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"hedge_after_s: got .*, expected more than 0 seconds"):
        Client("127.0.0.1:1", hedge_after_s=after_s)


def test_a_quiet_time_ends() -> None:
    hedge = Hedge(1)
    assert hedge.goes_on(ResourceExhaustedError("full", retry_delay_s=0.05))
    assert not hedge.may_begin
    eventually(lambda: hedge.may_begin)
    assert hedge.goes_on(UnavailableError("gone"))
    assert hedge.may_begin
    assert not hedge.goes_on(InvalidArgumentError("bad"))


def test_grpc_itself_ignores_a_hedging_policy(slow: Slow) -> None:
    """Why there is `hedge_after_s`; where this fails some day, gRPC's own will do."""
    policy = {"maxAttempts": 2, "hedgingDelay": "0.05s", "nonFatalStatusCodes": ["UNAVAILABLE"]}
    config = {"methodConfig": [{"name": [{"service": "pyserve.v1.Predict"}], "hedgingPolicy": policy}]}
    slow.plan = [hangs]
    with (
        Client(slow.address, service_config=config, retry_s=0.0) as client,
        pytest.raises(DeadlineExceededError),
    ):
        answering(client, timeout_s=1.0)
    assert slow.attempts == 1
