"""`pyserve tokens …`: works on the file of tokens where the server is, not over the network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pyserve import config as settings_module
from pyserve.cli.output import AsJson, note, print_json, print_table
from pyserve.cli.server import ConfigFile, name_file
from pyserve.errors import InvalidArgumentError
from pyserve.security.scopes import SCOPES
from pyserve.security.tokens import Token, TokenFile

app = typer.Typer(
    help="Make, list and revoke the tokens that calls need. Works on the server's own file, on its machine.",
    no_args_is_help=True,
)

DataDir = Annotated[Path | None, typer.Option(help="The server's data folder, where tokens_file is not set.")]
_DAY_S = 86_400.0


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="tokens")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will use it, as the audit log names them.")],
    scope: Annotated[
        list[str], typer.Option(help=f"What it may do: {', '.join(SCOPES)}; may be given several times.")
    ],
    days: Annotated[float | None, typer.Option(help="Days until it expires; default: never.")] = None,
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, once: the file keeps only its hash. A running server knows it at once."""
    if days is not None and not days > 0:
        raise InvalidArgumentError.field("days", days, "> 0")
    file = _file(config_file, data_dir)
    secret, token = file.create(name, scope, None if days is None else days * _DAY_S)
    if as_json:
        print_json(_plain(token) | {"token": secret})
        return
    print(secret)
    note(f"token {token.id} for {token.name}: {', '.join(token.scopes)}; it is not shown again")


@app.command("list")
def list_(config_file: ConfigFile = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the tokens: who has them, what they may do, when they expire."""
    tokens = _file(config_file, data_dir).read()
    if as_json:
        print_json({"tokens": [_plain(token) for token in tokens]})
        return
    rows = [
        (t.id, t.name, ", ".join(t.scopes), _time(t.create_time), _time(t.expire_time) + " expired" * t.expired())
        for t in tokens
    ]
    print_table(("token", "name", "scopes", "made", "expires"), rows)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="The token's id, as `pyserve tokens list` shows it.")],
    config_file: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a token: a running server refuses the next call with it."""
    gone = _file(config_file, data_dir).revoke(token)
    note(f"token {gone.id} of {gone.name} is revoked")


def _file(config_file: Path | None, data_dir: Path | None) -> TokenFile:
    name_file(config_file)
    settings = settings_module.load(data_dir=data_dir)
    return TokenFile(settings.tokens_path)


def _plain(token: Token) -> dict[str, Any]:
    return token.model_dump(mode="json", exclude={"sha256"})


def _time(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
