"""TLS, tokens, environment and service config, both clients against a real server that asks for all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyserve.client import AsyncClient, Client
from pyserve.client.connection import Connection
from pyserve.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.client.fake import Driven, FakeServer, unavailable
from tests.client.guarded import Guarded


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(address: str | None, **given: Any) -> Any:
        made.append((Client if request.param == "blocking" else Driven)(address, **given))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_all_credentials(guarded: Guarded, connect: Callable[..., Any]) -> None:
    client = connect(guarded.address, **guarded.all())
    assert client.health() == "SERVING"
    assert client.list_jobs() == []
    with pytest.raises(NotFoundError):
        list(client.watch("jobs/00000000-0000-0000-0000-000000000000"))
    with pytest.raises(PermissionDeniedError, match="scope 'predict'"):
        client.predict("models/none", [b"x"])


def test_environment(guarded: Guarded, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSERVE_ADDRESS", guarded.address)
    for name in ("token", "ca", "cert", "key"):
        monkeypatch.setenv(f"PYSERVE_{name.upper()}", str(guarded.all()[name]))
    assert connect(None).list_jobs() == []
    with pytest.raises(PermissionDeniedError, match="scope 'train'"):  # an argument wins
        connect(None, token=guarded.weak_token).list_jobs()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"token": None}, UnauthenticatedError, "PYSERVE_TOKEN"),
        ({"token": "hunter2"}, UnauthenticatedError, "not a token of pyserve"),
        ({"ca": "other_ca"}, FailedPreconditionError, "certificate of localhost:.* is not one to trust"),
        ({"cert": None, "key": None}, UnavailableError, "--cert and --key"),
        ({"token": None, "ca": None, "cert": None, "key": None}, UnavailableError, "one with TLS wants --ca"),
    ],
)
def test_what_lacks_is_said(
    guarded: Guarded, connect: Callable[..., Any], changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    changes = {name: getattr(guarded, str(value), value) for name, value in changes.items()}
    client = connect(guarded.address, **guarded.all(**changes))
    with pytest.raises(error, match=words) as caught:
        client.list_jobs(timeout_s=20)
    assert "hunter2" not in str(caught.value)


def test_tls_to_a_server_without(connect: Callable[..., Any], fake: FakeServer) -> None:
    client = connect(fake.address, tls=True, retry_s=0.0)
    with pytest.raises(FailedPreconditionError, match="does not speak TLS"):
        client.list_jobs(timeout_s=20)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"address": " "}, "address: got ' ', expected host:port"),
        ({"cert": Path("a")}, "key: got 'nothing', expected a PEM file, as cert is given"),
        ({"key": Path("a")}, "cert: got 'nothing', expected a PEM file, as key is given"),
        ({"ca": Path("a"), "tls": False}, "tls: got False"),
        ({"token": "two words"}, "token: expected printable ASCII"),
        ({"token": "line\nbreak"}, "token: expected printable ASCII"),
        ({"token": "secret", "address": "example.org:1"}, "would travel to example.org:1 unencrypted"),
        ({"token": "secret", "address": "127.example.org:1"}, "would travel to 127.example.org:1 unencrypted"),
    ],
)
def test_arguments_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Connection(**given)
    assert words in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("given", [{"insecure": True}, {"tls": True}, {"ca": Path("a")}])
def test_a_token_travels_beyond_loopback_where_it_is_encrypted(given: dict[str, Any]) -> None:
    connection = Connection("example.org:1", token="secret-word", **given)  # noqa: S106
    assert "secret-word" not in repr(connection)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"ca: got .*missing\.pem.*no such file"):
        Client("localhost:1", ca=tmp_path / "missing.pem")


def test_a_switch_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, uses in (("1", True), ("yes", True), ("0", False), ("", False)):
        monkeypatch.setenv("PYSERVE_TLS", text)
        assert Connection.of("a:1").uses_tls == uses
    monkeypatch.setenv("PYSERVE_TLS", "perhaps")
    with pytest.raises(InvalidArgumentError, match="PYSERVE_TLS: got 'perhaps', expected 1 or 0"):
        Connection.of("a:1")


def test_a_retry_policy_of_ones_own(connect: Callable[..., Any], fake: FakeServer) -> None:
    """gRPC itself tries again as the service config says; the client's own patience is off."""
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = {"methodConfig": [{"name": [{"service": "pyserve.v1.Predict"}], "retryPolicy": policy}]}
    fake.failures = [unavailable] * 3
    client = connect(fake.address, retry_s=0.0, service_config=config)
    assert client.predict("models/pets", [b"picture"]).predictions
    assert fake.failures == []
    fake.failures = [unavailable] * 4
    with pytest.raises(UnavailableError):
        client.predict("models/pets", [b"picture"])


async def test_asyncio_client_as_a_context(guarded: Guarded) -> None:
    async with AsyncClient(guarded.address, **guarded.all()) as client:
        assert await client.health("pyserve.v1.Jobs") == "SERVING"
        with pytest.raises(NotFoundError):
            await client.health("none")


def test_pings_keep_a_quiet_connection_known() -> None:
    options: dict[str, Any] = dict(Connection("example.org:1").options())
    assert options["grpc.keepalive_time_ms"] >= 300_000  # more often, and gRPC's servers hang up
    assert options["grpc.max_receive_message_length"] == 64 * 1024 * 1024
    assert "grpc.enable_http_proxy" not in options


def test_a_client_closes_after_ctrl_c_in_the_middle_of_a_beginning_stream(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment in which gRPC has made the call, and not yet the thread that is to end it."""

    def interrupted(state: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyserve.client.transport._CLOSE_S", 0.2)
    client = Client(fake.address)
    with monkeypatch.context() as patch:
        patch.setattr("grpc._channel._run_channel_spin_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(client.watch("jobs/0"))
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()  # gRPC itself waits for ever
