"""`pyserve serve`, `pyserve config`, `pyserve doctor` and `pyserve health`."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pyserve import config as settings_module
from pyserve.addresses import address_of
from pyserve.cli.exits import EXIT_CODES
from pyserve.cli.output import Address, AsJson, connect, print_json, print_table
from pyserve.client import DEFAULT_ADDRESS, Client
from pyserve.errors import FailedPreconditionError, UnavailableError

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.command()(serve)
    parent.command()(config)
    parent.command(epilog=EXIT_CODES)(doctor)
    parent.command(epilog=EXIT_CODES)(health)


def serve(
    config_file: ConfigFile = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of datasets, jobs and models.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default loopback.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow to listen beyond loopback without TLS or tokens.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="debug|info|warning|error", help="Least level logged.")
    ] = None,
) -> None:
    """Run the server until Ctrl-C or SIGTERM. The first line on stdout ends with its address.

    Every other setting comes from the environment or the TOML file: see `pyserve config`.
    """
    name_file(config_file)
    settings = settings_module.load(
        data_dir=data_dir, host=host, port=port, insecure=insecure, log_level=log_level
    )
    with server_needed():
        from pyserve.server.app import serve as run_server
    run_server(settings, on_ready=lambda address: print(f"pyserve listens on {address}", flush=True))


def config(config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print every setting, its value, origin and meaning."""
    name_file(config_file)
    settings = settings_module.load()
    origins = settings_module.origins()
    values = settings.model_dump(mode="json")
    if as_json:
        print_json({name: {"value": values[name], "origin": origins[name]} for name in values})
        return
    fields = settings_module.Settings.model_fields
    rows = [(name, str(values[name]), origins[name], fields[name].description or "") for name in values]
    print_table(("setting", "value", "from", "meaning"), rows)


def doctor(config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Say what this machine has and lacks, and what to do.

    Starts nothing and changes nothing.
    Exit code 0 where a server can start and do its work, 4 where something is in its way.
    """
    name_file(config_file)
    settings = settings_module.load()
    with server_needed():
        from pyserve.server.doctor import State, examine
    findings = examine(settings)
    problems = [f.check for f in findings if f.state is State.PROBLEM]
    if as_json:
        print_json({"ready": not problems, "checks": [asdict(f) for f in findings]})
    else:
        print_table(
            ("check", "", "found", "what to do"), [(f.check, f.state.value, f.found, f.advice) for f in findings]
        )
    if problems:
        raise FailedPreconditionError(f"in the server's way: {', '.join(problems)}")


def health(
    address: Address = DEFAULT_ADDRESS,
    service: Annotated[str, typer.Option(help="One service, such as pyserve.v1.Predict; default: all.")] = "",
    local: Annotated[
        bool, typer.Option("--local", help="Ask the server that has these settings on this machine.")
    ] = False,
    alive: Annotated[
        bool, typer.Option("--alive", help="Be content with any answer: a server that drains is alive.")
    ] = False,
    config_file: ConfigFile = None,
    timeout: Annotated[float, typer.Option(help="Longest wait for the answer, seconds.")] = 5.0,
) -> None:
    """Ask whether the server takes calls.

    Exit code 0 where it is SERVING, 5 where it is not. Needs no token.
    """
    name_file(config_file)
    with _to_own_server(timeout) if local else connect(address, retry_s=0.0) as client:
        status = client.health(service, timeout_s=timeout)
    if status != "SERVING" and not alive:
        raise UnavailableError(f"{service or 'the server'} is {status}")
    print(status)


@contextmanager
def server_needed() -> Iterator[None]:
    """Tell whoever has the client alone where the server is."""
    try:
        yield
    except ModuleNotFoundError as error:
        needed = f"{error.name} is missing: this is the client alone; `pip install pyserve` brings the server"
        raise FailedPreconditionError(needed) from None


def _to_own_server(timeout_s: float) -> Client:
    """A client for the server with our settings; with TLS it trusts that server's own certificate and no other."""
    settings = settings_module.load()
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    address = address_of(host, settings.port)
    if settings.tls_cert is None:
        return connect(address, retry_s=0.0)
    name = _certificate_name(settings.tls_cert, host, settings.port, timeout_s)
    return connect(address, retry_s=0.0, ca=settings.tls_cert, server_name=name)


def _certificate_name(cert: Path, host: str, port: int, timeout_s: float) -> str:
    """A name in the certificate that the server at this port shows, which must be `cert`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate itself is what is compared
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cert)
        with socket.create_connection((host, port), timeout_s) as plain, context.wrap_socket(plain) as secure:
            names: Any = (secure.getpeercert() or {}).get("subjectAltName", ())
            return str(next((name for kind, name in names if kind in ("DNS", "IP Address")), host))
    except OSError as error:  # SSLError is one
        problem = (getattr(error, "reason", None) or error.strerror or str(error)).lower()
        raise UnavailableError(
            f"no pyserve server with tls_cert {cert} answers at port {port}: {problem}"
        ) from None


def name_file(path: Path | None) -> None:
    """Take the settings from this file, where one was given."""
    if path is not None:
        os.environ["PYSERVE_CONFIG"] = str(path)
