"""Commands beside models: image kernels, approximation, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from pyserve.cli import exits
from pyserve.cli.answers import Dataset, Output, WhichPart, tell
from pyserve.cli.output import Address, AsJson, connect, note, print_facts, print_json, print_table, save_figures
from pyserve.client import DEFAULT_ADDRESS
from pyserve.client.insight_calls import Part
from pyserve.errors import InvalidArgumentError
from pyserve.spec import APPROXIMATION_TARGETS, IMAGE_KERNEL_NAMES


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    for command in (image_kernel, approximate, report):
        parent.command(command.__name__.replace("_", "-"), epilog=exits.EXIT_CODES)(command)


def image_kernel(
    picture: Annotated[Path, typer.Argument(help="Picture file.", metavar="PICTURE")],
    name: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(IMAGE_KERNEL_NAMES)}.",
            metavar="[NAME]",
        ),
    ] = "",
    matrix: Annotated[str, typer.Option(help="A kernel of your own, row by row: '0 -1 0; -1 5 -1; 0 -1 0'.")] = "",
    model: Annotated[str, typer.Option(help="Take a filter of this model's first layer.")] = "",
    channel: Annotated[int, typer.Option(min=0, help="Which filter of it.")] = 0,
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show what a small kernel makes of a picture."""
    if sum(map(bool, (name, matrix, model))) != 1:
        raise InvalidArgumentError.field("NAME", name, "one of a name, --matrix and --model")
    with connect(address) as client:
        kernel: Any = _matrix(matrix) if matrix else name
        answer = client.apply_kernel(picture, kernel, model=model, channel=channel)
    if output is not None:
        save_figures([answer.filtered], output)
    height, width = answer.response.shape
    facts: dict[str, object] = {"response": f"{width} × {height} pixels", "white is": answer.white}
    tell(answer, output, as_json, lambda: print_facts(facts))


def approximate(
    target: Annotated[str, typer.Argument(help=f"{', '.join(APPROXIMATION_TARGETS)}.")] = "waves",
    steps: Annotated[
        list[int] | None, typer.Option("--steps", help="Steps of a staircase, may be repeated.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Error that networks of each depth are to reach.")] = 0.01,
    depth: Annotated[
        list[int] | None, typer.Option("--depth", help="Hidden layers, may be repeated; default 1, 2, 3.")
    ] = None,
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show networks that approximate a function.

    As stairs, and how wide they must be where they are deep.
    """
    with connect(address) as client:
        answer = client.approximate(target, steps=steps or (), tolerance=tolerance, depths=depth or ())

    def show() -> None:
        print_table(("steps", "error"), [(len(s.places), s.error) for s in answer.staircases])
        rows = [(n.depth, n.width, n.parameters, n.error) for n in answer.networks]
        print_table(("hidden layers", "units in each", "weights", "error"), rows)

    tell(answer, output, as_json, show)


def report(
    name: Annotated[str, typer.Argument(help="A model, or jobs/{id} of its training.", metavar="MODEL|JOB")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path("report.html"),
    dataset: Dataset = "",
    part: WhichPart = "valid",
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Write all of a model on one HTML page.

    It needs no network to be viewed.
    """
    with connect(address) as client:
        answer = client.report(name, dataset=dataset, part=cast(Part, part))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(answer.html)
    if as_json:
        print_json({"model": answer.model, "path": str(output), "size_bytes": len(answer.html)})
    else:
        note(f"all of {answer.model}:")
        print(output)


def _matrix(text: str) -> list[list[float]]:
    try:
        return [[float(value) for value in row.split()] for row in text.split(";")]
    except ValueError:
        raise InvalidArgumentError.field("--matrix", text, "numbers, rows apart by ';'") from None
