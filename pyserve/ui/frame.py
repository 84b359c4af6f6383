"""What every page has: the client, the header, errors told as sentences, pictures of answers."""

from __future__ import annotations

import base64
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

from nicegui import context, events, ui

from pyserve.client import AsyncClient
from pyserve.errors import InvalidArgumentError, PyserveError
from pyserve.v1 import common_pb2

P = ParamSpec("P")

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">
<rect width="8" height="8" rx="1.5" fill="#0072b2"/>
<path d="M1.5 1.5h2v2h-2zM4.5 4.5h2v2h-2z" fill="#fff"/>
<path d="M4.5 1.5h2v2h-2zM1.5 4.5h2v2h-2z" fill="#9cf"/>
</svg>"""
_LINKS = (("Data sets and models", "/"), ("Image kernels", "/kernels"))
_STYLE = """
.q-uploader__list, .q-uploader__subtitle { display: none }
.q-uploader__header { border-radius: inherit }
.nicegui-echart text { fill: currentColor }
.body--dark :is(.q-btn--outline, .q-btn--flat, .q-badge--outline, .text-negative) {
  --q-primary: #56b4e9; --q-positive: #35c79b; --q-negative: #ff8b4d
}
"""
_CONNECT_S = 30.0
_MAX_PICTURE_BYTES = 32 * 2**20
_clients: list[AsyncClient] = []


def use(client: AsyncClient) -> None:
    """The client through which the pages call; the application sets it when its event loop runs."""
    _clients[:] = [client]


def client() -> AsyncClient:
    """The pages' client."""
    return _clients[0]


@contextmanager
def page(title: str, *, beside: str = "") -> Iterator[None]:
    """The frame of a page: header, and a column as wide as the window but not wider than can be read."""
    ui.colors(primary="#0072b2", positive="#009e73", negative="#d55e00", warning="#b07a00")
    ui.add_css(_STYLE)
    with ui.header().classes("items-center gap-x-6 gap-y-0 py-2"):
        ui.link("pyserve", "/").classes("text-white text-lg font-bold no-underline")
        for text, target in _LINKS:
            ui.link(text, target).classes("text-white no-underline hover:underline")
    with ui.column().classes("w-full max-w-6xl mx-auto gap-4 p-1 sm:p-4"):
        with ui.row().classes("items-baseline gap-x-4 gap-y-0"):
            ui.label(title).classes("text-2xl font-medium").props('role="heading" aria-level="1"')
            if beside:
                ui.label(beside).classes("opacity-70")
        yield


@contextmanager
def section(title: str) -> Iterator[ui.card]:
    """A titled card over the whole width."""
    with ui.card().classes("w-full").props("flat bordered") as card:
        ui.label(title).classes("text-lg font-medium").props('role="heading" aria-level="2"')
        yield card


def told(action: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """An action whose errors the page tells in the server's own sentence; the page stays as it is."""

    @functools.wraps(action)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await action(*args, **kwargs)
        except PyserveError as error:
            tell(error)

    return run


def filled(build: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """What fills a page from the server: the browser has the empty page first, and waits for no answer of it."""

    @functools.wraps(build)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await context.client.connected(timeout=_CONNECT_S)
        except TimeoutError:
            return  # nobody looks
        await told(build)(*args, **kwargs)

    return run


def tell(error: PyserveError) -> None:
    """Show an error until it is closed; it stays in the page's text for those who cannot see the colour."""
    if not context.client.is_deleted:
        ui.notify(str(error), type="negative", multi_line=True, close_button=True, timeout=0)


def upload(
    label: str, action: Callable[[events.UploadEventArguments], Awaitable[None]], *, accept: str, max_bytes: int
) -> ui.upload:
    """A place where one file is chosen or dropped, and sent at once.

    Args:
        label: what to do here.
        action: takes the file.
        accept: endings or media types, separated by commas.
        max_bytes: size of the file.
    """
    expected = f"file: expected one of {accept.replace(',', ', ')}, at most {max_bytes // 2**20} MiB"
    field = ui.upload(
        label=label,
        on_upload=action,
        on_rejected=lambda: tell(InvalidArgumentError(expected)),
        auto_upload=True,
        max_files=1,
        max_file_size=max_bytes,
    )
    return field.props(f'accept="{accept}" flat bordered').classes("w-full sm:w-96")


def picture_upload(action: Callable[[bytes], Awaitable[None]]) -> None:
    """A place for a picture to look at; `action` takes the file's bytes."""

    @told
    async def take(event: events.UploadEventArguments) -> None:
        field.reset()  # the next one may have the same name
        await action(await event.file.read())

    field = upload("Choose a picture, or drop it here", take, accept="image/*", max_bytes=_MAX_PICTURE_BYTES)


@contextmanager
def busy(button: ui.button) -> Iterator[None]:
    """The button shows that its work is under way, and cannot be pressed a second time."""
    button.props(add="loading").disable()
    try:
        yield
    finally:
        button.props(remove="loading").enable()


def figure_url(figure: common_pb2.Figure) -> str:
    """A picture of an answer, as the source of an image."""
    return f"data:{figure.media_type};base64,{base64.b64encode(figure.data).decode()}"


def show(figures: Iterable[common_pb2.Figure], text: str, *, width: str = "100%") -> None:
    """The drawing among an answer's figures, no wider than `width`, with a text that says what it shows."""
    drawing = next((figure for figure in figures if figure.media_type == "image/svg+xml"), None)
    if drawing is not None:
        picture(figure_url(drawing), text).classes("bg-white").style(f"width: min(100%, {width})")


def picture(source: str, text: str) -> ui.element:
    """A picture in its own proportions, and its text."""
    image = ui.element("img").classes("max-w-full rounded")
    image.props["src"], image.props["alt"] = source, text
    return image


def percent(value: float) -> str:
    """Such as "97.3 %"; what is nearly none or nearly all is not rounded to it."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"
