"""Answers with figures: tables for people, JSON for machines, figures into a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pyserve.cli.output import as_dict, note, print_json, save_figures

Dataset = Annotated[str, typer.Option(help="datasets/{id}; default: the one it was trained on.")]
WhichPart = Annotated[str, typer.Option(metavar="valid|train", help="Which part of it.")]
EitherPart = Annotated[str | None, typer.Option(metavar="valid|train", help="Which part of it; default: both.")]
Output = Annotated[Path | None, typer.Option(help="Folder to save the figures to, as PNG and SVG.")]
Layer = Annotated[str, typer.Argument(help="A layer of `pyserve layers`.", metavar="LAYER")]
Channels = Annotated[
    list[int] | None, typer.Option("--channel", help="Feature map, may be repeated; default: the strongest.")
]
Rule = Annotated[
    str, typer.Option(metavar="deconvnet|guided", help="How projections pass a ReLU; default: what suits it.")
]


def tell(answer: Any, output: Path | None, as_json: bool, show: Callable[[], None]) -> None:
    """Save the figures of an answer and show the rest.

    Args:
        show: prints the answer for people.
    """
    saved = [] if output is None else [str(path) for path in save_figures(answer.figures, output)]
    if as_json:
        del answer.figures[:]
        print_json({**as_dict(answer), "figures": saved})
        return
    show()
    if saved:
        print("\n".join(saved))
    else:
        note("Add --output FOLDER to save it as a picture.")
