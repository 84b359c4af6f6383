"""The interceptor that knows the caller: token, scope, limits, audit. It stands inside `CallInterceptor`.

A call that is turned away is answered before its request is read: gRPC does not tell on the wire how many messages
a call has, so that a refused call of any kind gets a handler for streams, which reads nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from pyserve.errors import PermissionDeniedError, PyserveError, status_name
from pyserve.security.audit import AuditLog
from pyserve.security.limits import CallLimits
from pyserve.security.scopes import REFLECTION, Need, need_of
from pyserve.security.tokens import Token, Tokens
from pyserve.server.handlers import parts
from pyserve.server.logs import request_id

ANONYMOUS = "anonymous"
AUTHORIZATION = "authorization"
# Where a request says what it is about: a resource name, or the id of one that is to be made.
_NAMES = ("name", "model", "dataset", "alias", "model_name")
_IDS = {"dataset_id": "datasets", "model_id": "models"}
_INSIDE = ("header", "train", "find_learning_rate", "training")


@dataclass(frozen=True)
class Caller:
    """Who calls: a token's name and id, or anybody."""

    name: str = ANONYMOUS
    token_id: str = ""


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Lets calls pass, or turns them away.

    Args:
        tokens: recognises callers; None lets everybody do everything.
        limits: what one caller may do.
        audit: where calls are written down; None keeps no log.
        audit_predictions: write predictions down too.
        open_reflection: server reflection asks for no token.
    """

    def __init__(
        self,
        tokens: Tokens | None,
        limits: CallLimits,
        audit: AuditLog | None = None,
        *,
        audit_predictions: bool = False,
        open_reflection: bool = False,
    ) -> None:
        self._tokens = tokens
        self._limits = limits
        self._audit = audit
        self._audit_predictions = audit_predictions
        self._open_reflection = open_reflection

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler of a call, or one that refuses it."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        need = "open" if self._open_reflection and method.startswith(REFLECTION) else need_of(method)
        if handler is None or need == "open":
            return handler
        caller = Caller()
        try:
            if self._tokens is not None:
                token = self._tokens.recognise(_authorization(handler_call_details.invocation_metadata))
                caller = Caller(token.name, token.id)
                _check_scope(token, need, method)
            self._enter(caller)
        except PyserveError as error:
            return self._refusing(error, method, caller)
        return handler if self._audit is None else self._audited(handler, method, need, caller)

    def _enter(self, caller: Caller) -> None:
        """Count the call until its task ends, also where its request never arrives whole."""
        key = caller.token_id or ANONYMOUS
        self._limits.enter(key)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  gRPC runs each call in a task of its own
        task.add_done_callback(lambda _: self._limits.leave(key))

    def _refusing(self, error: PyserveError, method: str, caller: Caller) -> Any:
        async def refuse(requests: Any, context: Any) -> AsyncIterator[NoReturn]:
            if self._audit is not None:
                facts = _facts(method, caller, context) | {"code": status_name(error)}
                self._audit.write(facts, refused=True)
            raise error
            yield  # type: ignore[unreachable]  # makes a generator of it

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _audited(self, handler: Any, method: str, need: Need, caller: Caller) -> Any:
        behaviour, make = parts(handler)

        async def single(request: Any, context: Any) -> Any:
            with self._noting(method, need, caller, context) as note:
                response = await behaviour(note.seen(request), context)
                note.result = _text(response, "name")
                return response

        async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._noting(method, need, caller, context) as note:
                async with aclosing(behaviour(note.seen(request), context)) as responses:
                    async for response in responses:
                        yield response

        return make(
            streaming if handler.response_streaming else single,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextmanager
    def _noting(self, method: str, need: Need, caller: Caller, context: Any) -> Iterator[_Note]:
        note, code, begin = _Note(), "OK", time.monotonic()
        try:
            yield note
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except Exception as error:
            code = status_name(error)
            raise
        finally:
            if self._audit is not None and (code != "OK" or need != "predict" or self._audit_predictions):
                ms = round((time.monotonic() - begin) * 1e3, 1)
                told = {"resource": note.resource, "result": note.result, "code": code, "ms": ms}
                self._audit.write(_facts(method, caller, context) | told)


class _Note:
    """What a call is about, as far as its first request tells, and what came out of it."""

    def __init__(self) -> None:
        self.resource = ""
        self.result = ""

    def seen(self, request: Any) -> Any:
        """The request, or the stream of them, looked at on its way."""
        if isinstance(request, Message):
            self.resource = resource_of(request)
            return request
        return self._looking(request) if hasattr(request, "__aiter__") else request

    async def _looking(self, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if not self.resource and isinstance(request, Message):
                self.resource = resource_of(request)
            yield request


def resource_of(request: Message) -> str:
    """The resource that a request names: "datasets/pets"; "" where it names none."""
    for name in _NAMES:
        if value := _text(request, name):
            return value
    for name, collection in _IDS.items():
        if value := _text(request, name):
            return f"{collection}/{value}"
    for name in _INSIDE:
        if name in request.DESCRIPTOR.fields_by_name and request.HasField(name):
            return resource_of(getattr(request, name))
    return ""


def _text(message: Any, field: str) -> str:
    value = getattr(message, field, "") if isinstance(message, Message) else ""
    return value if isinstance(value, str) else ""


def _authorization(metadata: Any) -> str | None:
    return next((value for key, value in metadata or () if key == AUTHORIZATION and isinstance(value, str)), None)


def _check_scope(token: Token, need: Need, method: str) -> None:
    if need in ("any", *token.scopes) or "admin" in token.scopes:
        return
    raise PermissionDeniedError(
        f"{method.removeprefix('/')} asks for a token with scope {need!r}; token {token.id} ({token.name}) has "
        f"{', '.join(token.scopes)}",
        metadata={"scope": need},
    )


def _facts(method: str, caller: Caller, context: Any) -> dict[str, object]:
    """Who calls what from where."""
    names = (context.auth_context() or {}).get("x509_common_name", ())
    return {
        "request_id": request_id(),
        "caller": caller.name,
        "token": caller.token_id,
        "certificate": ", ".join(name.decode(errors="replace") for name in names),
        "peer": context.peer(),
        "method": method.removeprefix("/"),
    }
