"""The web server of the page: where it listens, whom it answers, how it starts and ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pyserve.addresses import address_of, host_of, is_loopback
from pyserve.client import AsyncClient
from pyserve.errors import InvalidArgumentError
from pyserve.ui import frame
from pyserve.ui.pages import PAGES


def serve(
    connection: dict[str, Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    insecure: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        connection: arguments of `AsyncClient`. Whoever can open the page acts with its token.
        host, port: where to listen; port 0 takes a free one.
        insecure: allow to listen beyond loopback: the page itself asks nobody who they are.
        on_ready: called with the page's URL.

    Raises:
        InvalidArgumentError: the host is beyond loopback without `insecure`, or not this machine's, or the port is
            taken.
    """
    if not insecure and not is_loopback(host):
        expected = (
            "a loopback address, as whoever can open the page acts as you; --insecure allows any, "
            "behind something that asks who they are"
        )
        raise InvalidArgumentError.field("host", host, expected)
    with _listening(host, port) as listener:
        url = f"http://{address_of(host, listener.getsockname()[1])}"
        server = uvicorn.Server(
            uvicorn.Config(
                application(connection, only_loopback=not insecure),
                log_level="warning",
                timeout_graceful_shutdown=2,
                ws_max_size=16 * 2**20,
            )
        )
        on_ready(url)
        server.run(sockets=[listener])


def application(connection: dict[str, Any], *, only_loopback: bool) -> FastAPI:
    """The page as an ASGI application; each process may have one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(**connection) as client:
            frame.use(client)
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    if only_loopback:
        app.add_middleware(LoopbackNamesOnly)
    for path, title, build in PAGES:
        ui.page(path, title=f"{title} · pyserve")(build)
    ui.run_with(app, title="pyserve", dark=None, favicon=frame.ICON, show_welcome_message=False)
    return app


class LoopbackNamesOnly:
    """Answers requests that name this machine by a loopback name, and that come from the page itself if from any.

    Others come through a DNS name that was rebound to this machine, or from another page in the same browser.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse with 421."""
        if scope["type"] not in ("http", "websocket") or _is_own(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            answer = PlainTextResponse("this page answers to localhost only\n", status_code=421)
            await answer(scope, receive, send)


def _is_own(headers: Headers) -> bool:
    host, origin = headers.get("host", ""), headers.get("origin")
    return is_loopback(host_of(host)) and origin in (None, f"http://{host}")


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise InvalidArgumentError.field("port", port, "0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidArgumentError.field("host", host, f"an address of this machine ({error.strerror})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise InvalidArgumentError.field(
            "port", port, f"one that is free on {host} ({(error.strerror or '').lower()})"
        ) from None
    return listener
