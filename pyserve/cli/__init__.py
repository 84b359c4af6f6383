"""The command `pyserve`: thin over the client; only `pyserve serve` loads the server, and with it torch.

    server.py      serve, config, doctor, health
    tokens.py      tokens create · list · revoke
    datasets.py    datasets upload · register · list · show · relabel · delete
    training.py    lr-find, train
    jobs.py        jobs list · show · watch · cancel · resume · delete · artifacts · tensorboard
    models.py      models list · show, predict
    insight.py     top-losses, confusion-matrix, compare-models, calibration, calibrate, label-issues, duplicates
    network.py     layers, filters, feature-maps, top-patches, evolution, explain
    lessons.py     image-kernel, approximate, report
    kernels.py     kernels, kernels tune
    page.py        ui

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pyserve.cli import (
    datasets,
    insight,
    jobs,
    kernels,
    lessons,
    models,
    network,
    page,
    server,
    tokens,
    training,
)
from pyserve.cli.exits import EXIT_CODES, exit_code, print_error
from pyserve.cli.output import Credentials, credentials
from pyserve.errors import InvalidArgumentError, PyserveError

app = typer.Typer(
    name="pyserve",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; or PYSERVE_TOKEN, the token itself.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities of the server's certificate; PYSERVE_CA.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of your own certificate; PYSERVE_CERT.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its private key; PYSERVE_KEY.")] = None,
    tls: Annotated[
        bool | None, typer.Option("--tls", help="TLS with the system's authorities; PYSERVE_TLS=1.")
    ] = None,
) -> None:
    """Train, tune and serve image classifiers over gRPC, on convolution kernels of our own."""
    # No option takes the token itself: everybody on the machine sees a command's arguments.
    credentials.set(Credentials(_token(token_file), ca, cert, key, tls))


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not text"
        raise InvalidArgumentError.field(
            "token-file", str(path), f"a file with a token ({problem.lower()})"
        ) from None


for _commands in (server, tokens, datasets, training, jobs, models, insight, network, lessons, kernels, page):
    _commands.add_to(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: without the program's name; default: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="pyserve")
    except PyserveError as error:
        print_error(error, as_json="--json" in given)
        sys.exit(exit_code(error))
