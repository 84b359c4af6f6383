"""`pyserve ui`: the page in a browser."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pyserve.cli.exits import EXIT_CODES
from pyserve.cli.output import Address, credentials
from pyserve.client import DEFAULT_ADDRESS
from pyserve.client.connection import Connection
from pyserve.errors import FailedPreconditionError


def add_to(parent: typer.Typer) -> None:
    """Add the command."""
    parent.command("ui", epilog=EXIT_CODES)(page)


def page(
    address: Address = DEFAULT_ADDRESS,
    host: Annotated[str, typer.Option(help="Address the page listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port the page listens on; 0 takes a free one.")] = 8080,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Allow to listen beyond loopback: whoever opens the page acts as you."),
    ] = False,
) -> None:
    """Serve the page: the lesson in a browser.

    Upload pictures, find the rate, train, look at mistakes, predict. A client of the server like any other. Runs
    until Ctrl-C; the first line on stdout ends with the page's URL.
    """
    try:
        from pyserve.ui.serving import serve
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"{error.name} is missing: `pip install 'pyserve[ui]'` brings the page"
        ) from None
    given = {"address": address or DEFAULT_ADDRESS, **asdict(credentials.get())}
    Connection.of(**given)  # what is wrong with it is told before anything listens
    serve(
        given,
        host=host,
        port=port,
        insecure=insecure,
        on_ready=lambda url: print(f"the page is at {url}", flush=True),
    )
