"""`pyserve top-losses`, `pyserve confusion-matrix`, `pyserve kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from pyserve.cli import exits
from pyserve.cli.models import Name
from pyserve.cli.output import (
    Address,
    AsJson,
    as_dict,
    connect,
    note,
    print_facts,
    print_json,
    print_table,
    save_figures,
)
from pyserve.client import DEFAULT_ADDRESS
from pyserve.client.calls import LossOrder, Part
from pyserve.v1 import common_pb2

Dataset = Annotated[str, typer.Option(help="datasets/{id}; default: the one it was trained on.")]
WhichPart = Annotated[str, typer.Option(metavar="valid|train", help="Which part of it.")]
Output = Annotated[Path | None, typer.Option(help="Folder to save the figures to, as PNG and SVG.")]


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (
        ("top-losses", top_losses),
        ("confusion-matrix", confusion_matrix),
        ("kernels", kernels),
    ):
        parent.command(name, epilog=exits.EXIT_CODES)(command)


def top_losses(
    name: Name,
    dataset: Dataset = "",
    part: WhichPart = "valid",
    order: Annotated[
        str,
        typer.Option(
            metavar="most_incorrect|most_correct|most_uncertain|highest_loss", help="Which pictures come first."
        ),
    ] = "most_incorrect",
    count: Annotated[int, typer.Option(min=1, max=100, help="How many pictures.")] = 9,
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show the pictures a model gets most wrong.

    Or those it is most right about or least sure of: see --order.
    """
    with connect(address) as client:
        answer = client.top_losses(
            name, dataset=dataset, part=cast(Part, part), order=cast(LossOrder, order), count=count
        )
    saved = _save(answer.figures, output)
    if as_json:
        del answer.figures[:]
        print_json({**as_dict(answer), "figures": saved})
        return
    rows = [
        (i.path, i.label, i.predicted, f"{i.probability:.2%}", f"{i.label_probability:.2%}", i.loss)
        for i in answer.items
    ]
    print_table(("picture", "label", "predicted", "probability", "of label", "loss"), rows)
    _tell(saved)


def confusion_matrix(
    name: Name,
    dataset: Dataset = "",
    part: WhichPart = "valid",
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show which class is taken for which."""
    with connect(address) as client:
        answer = client.confusion_matrix(name, dataset=dataset, part=cast(Part, part))
    saved = _save(answer.figures, output)
    if as_json:
        del answer.figures[:]
        print_json({**as_dict(answer), "figures": saved})
        return
    n = len(answer.labels)
    rows = [(label, *answer.counts[i * n : (i + 1) * n]) for i, label in enumerate(answer.labels)]
    print_table(("label ↓  predicted →", *answer.labels), rows)
    print_facts({"accuracy": f"{answer.accuracy:.2%}", "loss": answer.loss})
    if answer.most_confused:
        pairs = [(pair.label, pair.predicted, pair.count) for pair in answer.most_confused]
        print_table(("label", "taken for", "times"), pairs)
    _tell(saved)


def kernels(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Show what runs underneath, and what fell back to ATen."""
    with connect(address) as client:
        answer = client.kernels()
    if as_json:
        print_json(answer)
        return
    facts: dict[str, Any] = {
        "instruction set": f"{answer.isa_used} (best found: {answer.isa_found})",
        "CUDA kernels": "loaded" if answer.cuda_loaded else "not loaded",
        **dict(sorted(answer.build.items())),
    }
    print_facts(facts)
    rows = [(v.name, v.op, v.device, v.isa, "yes" if v.available else "no", v.calls) for v in answer.variants]
    print_table(("variant", "operator", "device", "needs", "runs here", "calls"), rows)
    if answer.fallbacks:
        print_table(("fell back to ATen", "why", "calls"), [(f.op, f.reason, f.calls) for f in answer.fallbacks])
    else:
        print("no call fell back to ATen")


def _save(figures: Sequence[common_pb2.Figure], output: Path | None) -> list[str]:
    return [] if output is None else [str(path) for path in save_figures(figures, output)]


def _tell(saved: list[str]) -> None:
    if saved:
        print("\n".join(saved))
    else:
        note("Add --output FOLDER to save it as a picture.")
