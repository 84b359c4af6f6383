"""`pyserve models …` and `pyserve predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyserve.cli import exits
from pyserve.cli.output import (
    Address,
    AsJson,
    as_dict,
    connect,
    format_bytes,
    format_time,
    print_facts,
    print_json,
    print_table,
)
from pyserve.client import DEFAULT_ADDRESS
from pyserve.errors import InvalidArgumentError

app = typer.Typer(help="List and describe trained models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="models/{id} (newest) or models/{id}/versions/{n}", metavar="MODEL")]
# Suffixes that are taken from a folder; a file named itself is sent whatever it is called.
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.command("predict", epilog=exits.EXIT_CODES)(predict)
    parent.add_typer(app, name="models")


@app.command("list")
def list_(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List all model versions, newest first."""
    with connect(address) as client:
        models = client.list_models()
    if as_json:
        print_json(models)
        return
    rows = [
        (
            m.name,
            m.architecture,
            len(m.labels),
            m.image_size,
            f"{m.metrics['accuracy']:.2%}" if "accuracy" in m.metrics else "",
            format_bytes(m.size_bytes),
            format_time(m.create_time),
        )
        for m in models
    ]
    print_table(("model", "architecture", "classes", "pixels", "accuracy", "size", "made"), rows)


@app.command()
def show(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Describe one model: labels, metrics, and where it comes from."""
    with connect(address) as client:
        model = client.get_model(name)
    if as_json:
        print_json(model)
        return
    facts: dict[str, object] = {
        "model": model.name,
        "architecture": model.architecture,
        "labels": ", ".join(model.labels),
        "image size": f"{model.image_size} pixels",
        "parameters": f"{model.parameter_count:,}",
        "size": format_bytes(model.size_bytes),
        "made": format_time(model.create_time),
        **{f"valid {key}": float(value) for key, value in sorted(model.metrics.items())},
        **dict(sorted(model.provenance.items())),
    }
    print_facts(facts)


def predict(
    name: Name,
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.")],
    top_k: Annotated[int, typer.Option(min=1, help="How many classes for each picture.")] = 1,
    tta: Annotated[bool, typer.Option("--tta", help="Test-time augmentation: slower, a little better.")] = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Say what is on pictures. --json prints one object per picture and line."""
    paths = [path for given in pictures for path in _pictures(given)]
    with connect(address) as client:
        answer = client.predict(name, paths, top_k=top_k, tta=tta)
    pairs = list(zip(paths, answer.predictions, strict=True))
    if as_json:
        for path, prediction in pairs:
            print_json({"path": str(path), "model": answer.model, **as_dict(prediction)}, line=True)
        return
    rows = [
        (path if rank == 0 else "", score.label, f"{score.probability:.2%}")
        for path, prediction in pairs
        for rank, score in enumerate(prediction.scores)
    ]
    print_table(("picture", "label", "probability"), rows)


def _pictures(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in _PICTURE_SUFFIXES)
    if not found:
        raise InvalidArgumentError.field("PICTURES", str(given), "a folder that holds pictures")
    return found
