"""The command `pyserve`: thin over the client; only `pyserve serve` loads the server, and with it torch.

    server.py      serve, config
    datasets.py    datasets upload · register · list · show · relabel · delete
    training.py    lr-find, train
    jobs.py        jobs list · show · watch · cancel · resume · artifacts
    models.py      models list · show, predict
    insight.py     top-losses, confusion-matrix, compare-models, calibration, calibrate, label-issues, duplicates
    network.py     layers, filters, feature-maps, top-patches, evolution, explain
    lessons.py     image-kernel, approximate, report, kernels

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from pyserve.cli import datasets, insight, jobs, lessons, models, network, server, training
from pyserve.cli.exits import EXIT_CODES, exit_code, print_error
from pyserve.errors import PyserveError

app = typer.Typer(
    name="pyserve",
    help="Train, tune and serve image classifiers over gRPC, on convolution kernels of our own.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _commands in (server, datasets, training, jobs, models, insight, network, lessons):
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
