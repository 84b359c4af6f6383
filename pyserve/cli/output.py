"""What commands print: tables for people, JSON for machines, and the options that all commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyserve.client import DEFAULT_ADDRESS, Client
from pyserve.client.clients import RETRY_S
from pyserve.v1 import common_pb2

Address = Annotated[
    str, typer.Option("--address", envvar="PYSERVE_ADDRESS", help="Server, host:port.", metavar="HOST:PORT")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON (the standard protobuf form) to stdout, for machines.")
]
_PIPE_WIDTH = 200  # columns where no terminal says how many there are: names must not be folded


@dataclass(frozen=True)
class Credentials:
    """What the options before the command say of TLS and token; None leaves it to the environment."""

    token: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    tls: bool | None = None


credentials: ContextVar[Credentials] = ContextVar("credentials", default=Credentials())  # noqa: B039  frozen


def connect(address: str, *, retry_s: float = RETRY_S, **given: Any) -> Client:
    """A client for a command; what is given wins over the options before it."""
    return Client(address or DEFAULT_ADDRESS, retry_s=retry_s, **(asdict(credentials.get()) | given))


def console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr as they are now, so that redirections count."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def note(text: str) -> None:
    """Tell the person, not the pipe."""
    console(stderr=True).print(Text(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout; numbers to the right."""
    cells = [[value if isinstance(value, int | float) else str(value) for value in row] for row in rows]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[i], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(format_number(value)) for value in row))
    console().print(table)


def print_facts(facts: dict[str, object]) -> None:
    """Name and value, line by line; empty values are left out."""
    print_table(("", ""), [(name, value) for name, value in facts.items() if value not in ("", None)])


def print_json(value: Message | Sequence[Message] | dict[str, Any], *, line: bool = False) -> None:
    """A message, a list of them or plain values as JSON on stdout; `line`: on one line, as in NDJSON."""
    if isinstance(value, Message):
        plain: Any = as_dict(value)
    elif isinstance(value, dict):
        plain = value
    else:
        plain = [as_dict(item) for item in value]
    print(json.dumps(plain, ensure_ascii=False, indent=None if line else 2), flush=True)


def as_dict(message: Message) -> dict[str, Any]:
    """The standard JSON form of a message, field names as in the protos."""
    return MessageToDict(message, preserving_proto_field_name=True)


def save_figures(figures: Iterable[common_pb2.Figure], folder: Path) -> list[Path]:
    """Write figures into a folder, made if missing; only the last part of their names counts."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in figures:
        path = folder / Path(figure.name).name
        path.write_bytes(figure.data)
        paths.append(path)
    return paths


def format_time(time: Timestamp) -> str:
    """Local time, or "" where it is not set."""
    if not time.seconds:
        return ""
    return time.ToDatetime(tzinfo=timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def format_bytes(size: float) -> str:
    """Such as "3.2 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def format_number(value: object) -> str:
    """Floats with four significant digits, all else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
