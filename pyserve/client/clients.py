"""The two clients: the calls over grpc.aio, and the same calls blocking."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyserve.client.calls import Calls
from pyserve.client.connection import Connection
from pyserve.client.hedging import hedge_of
from pyserve.client.transport import AioTransport, BlockingTransport

TIMEOUT_S = 30.0
RETRY_S = 3.0
RECONNECT_S = 120.0

P = ParamSpec("P")
T = TypeVar("T")


class AsyncClient(Calls):
    """A client for asyncio; to be made and used on one event loop, best with `async with`.

    Args:
        address: "host:port" of the server. This and the next six come from the environment where they are None:
            PYSERVE_ADDRESS, PYSERVE_TOKEN, PYSERVE_CA, PYSERVE_CERT, PYSERVE_KEY, PYSERVE_TLS (1 or 0),
            PYSERVE_SERVER_NAME.
        token: says who calls, where the server asks for tokens.
        ca: PEM file of the authorities that may vouch for the server, which turns TLS on.
        cert: PEM file of the client's own certificate chain, where the server asks for one (mutual TLS).
        key: PEM file of its private key.
        tls: True turns TLS on with the system's authorities.
        server_name: the name that the server's certificate must have, where it is not the address's.
        insecure: let the token travel unencrypted beyond loopback, where something else encrypts (a service mesh).
        service_config: gRPC's own, with load balancing, a `retryPolicy` or client-side health checking.
        timeout_s: limit of calls that answer at once; each call takes a `timeout_s` of its own as well.
        retry_s: how long calls are tried again while the server is unavailable.
        reconnect_s: how long a watch or an upload that broke off tries to go on.
        hedge_after_s: after how long without an answer `predict` asks a second time, takes the answer that comes
            first, and cancels the other; None for never.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        tls: bool | None = None,
        server_name: str | None = None,
        insecure: bool = False,
        service_config: Mapping[str, Any] | None = None,
        timeout_s: float = TIMEOUT_S,
        retry_s: float = RETRY_S,
        reconnect_s: float = RECONNECT_S,
        hedge_after_s: float | None = None,
    ) -> None:
        hedge = hedge_of(hedge_after_s)
        connection = Connection.of(
            address,
            token=token,
            ca=ca,
            cert=cert,
            key=key,
            tls=tls,
            server_name=server_name,
            insecure=insecure,
            service_config=service_config,
        )
        transport = AioTransport(connection)
        super().__init__(transport, timeout_s=timeout_s, retry_s=retry_s, reconnect_s=reconnect_s, hedge=hedge)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _blocking(
    method: Callable[Concatenate[Calls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """The method of `Client` that runs a coroutine which never suspends."""

    @wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(method(client.calls, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Calls, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    """The method of `Client` that goes through an asynchronous generator which never suspends."""

    @wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(client.calls, *args, **kwargs)
        try:
            while True:
                try:
                    item = _run(items.__anext__())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            _run(items.aclose())

    return call


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a call of the blocking client suspended: its transport must not")


class Client:
    """A blocking client; its methods may be called from several threads. Best used with `with`.

    Args:
        address: "host:port" of the server. This and the next six come from the environment where they are None:
            PYSERVE_ADDRESS, PYSERVE_TOKEN, PYSERVE_CA, PYSERVE_CERT, PYSERVE_KEY, PYSERVE_TLS (1 or 0),
            PYSERVE_SERVER_NAME.
        token: says who calls, where the server asks for tokens.
        ca: PEM file of the authorities that may vouch for the server, which turns TLS on.
        cert: PEM file of the client's own certificate chain, where the server asks for one (mutual TLS).
        key: PEM file of its private key.
        tls: True turns TLS on with the system's authorities.
        server_name: the name that the server's certificate must have, where it is not the address's.
        insecure: let the token travel unencrypted beyond loopback, where something else encrypts (a service mesh).
        service_config: gRPC's own, with load balancing, a `retryPolicy` or client-side health checking.
        timeout_s: limit of calls that answer at once; each call takes a `timeout_s` of its own as well.
        retry_s: how long calls are tried again while the server is unavailable.
        reconnect_s: how long a watch or an upload that broke off tries to go on.
        hedge_after_s: after how long without an answer `predict` asks a second time, takes the answer that comes
            first, and cancels the other; None for never.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        tls: bool | None = None,
        server_name: str | None = None,
        insecure: bool = False,
        service_config: Mapping[str, Any] | None = None,
        timeout_s: float = TIMEOUT_S,
        retry_s: float = RETRY_S,
        reconnect_s: float = RECONNECT_S,
        hedge_after_s: float | None = None,
    ) -> None:
        hedge = hedge_of(hedge_after_s)
        connection = Connection.of(
            address,
            token=token,
            ca=ca,
            cert=cert,
            key=key,
            tls=tls,
            server_name=server_name,
            insecure=insecure,
            service_config=service_config,
        )
        transport = BlockingTransport(connection)
        self.calls = Calls(transport, timeout_s=timeout_s, retry_s=retry_s, reconnect_s=reconnect_s, hedge=hedge)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    close = _blocking(Calls.close)

    upload_dataset = _blocking(Calls.upload_dataset)
    register_dataset = _blocking(Calls.register_dataset)
    get_dataset = _blocking(Calls.get_dataset)
    get_picture = _blocking(Calls.get_picture)
    list_datasets = _blocking(Calls.list_datasets)
    relabel_dataset = _blocking(Calls.relabel_dataset)
    delete_dataset = _blocking(Calls.delete_dataset)

    train = _blocking(Calls.train)
    find_learning_rate = _blocking(Calls.find_learning_rate)
    get_job = _blocking(Calls.get_job)
    list_jobs = _blocking(Calls.list_jobs)
    watch = _iterating(Calls.watch)
    wait = _blocking(Calls.wait)
    cancel_job = _blocking(Calls.cancel_job)
    resume_job = _blocking(Calls.resume_job)
    delete_job = _blocking(Calls.delete_job)
    get_artifact = _blocking(Calls.get_artifact)
    tensorboard = _blocking(Calls.tensorboard)

    predict = _blocking(Calls.predict)
    predict_stream = _iterating(Calls.predict_stream)
    get_model = _blocking(Calls.get_model)
    list_models = _blocking(Calls.list_models)
    load_model = _blocking(Calls.load_model)
    unload_model = _blocking(Calls.unload_model)
    set_alias = _blocking(Calls.set_alias)
    delete_model = _blocking(Calls.delete_model)
    export_model = _blocking(Calls.export_model)
    import_model = _blocking(Calls.import_model)

    top_losses = _blocking(Calls.top_losses)
    confusion_matrix = _blocking(Calls.confusion_matrix)
    compare_models = _blocking(Calls.compare_models)
    calibration = _blocking(Calls.calibration)
    calibrate = _blocking(Calls.calibrate)
    label_issues = _blocking(Calls.label_issues)
    duplicates = _blocking(Calls.duplicates)
    layers = _blocking(Calls.layers)
    filters = _blocking(Calls.filters)
    feature_maps = _blocking(Calls.feature_maps)
    top_patches = _blocking(Calls.top_patches)
    evolution = _blocking(Calls.evolution)
    explain = _blocking(Calls.explain)
    apply_kernel = _blocking(Calls.apply_kernel)
    approximate = _blocking(Calls.approximate)
    report = _blocking(Calls.report)
    kernels = _blocking(Calls.kernels)

    health = _blocking(Calls.health)
