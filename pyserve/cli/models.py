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
    note,
    print_facts,
    print_json,
    print_table,
)
from pyserve.cli.progress import transfer_bar
from pyserve.client import DEFAULT_ADDRESS
from pyserve.errors import InvalidArgumentError
from pyserve.v1 import models_pb2

app = typer.Typer(help="List, load, name, move and remove trained models.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(help="models/{id} (newest), models/{id}/versions/{n} or models/{id}@{alias}", metavar="MODEL"),
]
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
            ", ".join(m.aliases),
            "yes" if m.loaded else "",
        )
        for m in models
    ]
    columns = ("model", "architecture", "classes", "pixels", "accuracy", "size", "made", "aliases", "loaded")
    print_table(columns, rows)


@app.command()
def show(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Describe one model: labels, metrics, and where it comes from."""
    with connect(address) as client:
        show_model(client.get_model(name), as_json)


@app.command()
def load(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Bring a model into memory, where it stays until it is unloaded."""
    with connect(address) as client:
        answer = client.load_model(name)
    if as_json:
        print_json(answer)
        return
    note(f"loaded {answer.model.name}: {format_bytes(answer.model_bytes)}{_memory(answer.memory)}")


@app.command()
def unload(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Take a model out of memory; it predicts again once it is loaded."""
    with connect(address) as client:
        answer = client.unload_model(name)
    if as_json:
        print_json(answer)
        return
    note(f"unloaded {answer.model.name}{_memory(answer.memory)}")


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="models/{id}@{alias}", metavar="ALIAS")],
    version: Annotated[
        str, typer.Argument(help="The version, by any of its names; none removes the alias.", metavar="MODEL")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version of its model, or remove it."""
    with connect(address) as client:
        model = client.set_alias(name, version)
    if as_json:
        print_json(model)
        return
    note(f"{name} is {model.name}" if version else f"removed {name}; it was {model.name}")


@app.command()
def delete(name: Name, address: Address = DEFAULT_ADDRESS) -> None:
    """Remove a version, or models/{id} with all its versions and aliases."""
    with connect(address) as client:
        client.delete_model(name)
    note(f"removed {name}")


@app.command()
def export(
    name: Name,
    path: Annotated[Path, typer.Argument(help="File to write; one that is there is replaced.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="bundle: an archive that `models import` takes. onnx: for ONNX Runtime and the like."
        ),
    ] = "bundle",
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Write a model into a file: an archive that `models import` takes, or an ONNX file."""
    with connect(address) as client, transfer_bar("server reads the model", "downloads", "checks") as progress:
        model = client.export_model(name, path, format=format_, progress=progress)
    if as_json:
        print_json(model)
        return
    note(f"wrote {model.name} to {path}")


@app.command("import")
def import_(
    model_id: Annotated[str, typer.Argument(help="Name part of the model, made if new.", metavar="ID")],
    path: Annotated[Path, typer.Argument(help="Archive file that `models export` wrote.")],
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Make a new version of an archive; it is checked and tried first."""
    with connect(address) as client, transfer_bar("reads", "uploads", "server tries the model") as progress:
        model = client.import_model(path, model_id, progress=progress)
    show_model(model, as_json)


def show_model(model: models_pb2.Model, as_json: bool) -> None:
    """A model on stdout."""
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
        "aliases": ", ".join(model.aliases),
        "in memory": "yes" if model.loaded else "no",
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


def _memory(change: models_pb2.MemoryChange) -> str:
    before, after = format_bytes(change.before_bytes), format_bytes(change.after_bytes)
    return f"; the server's memory went from {before} to {after}"


def _pictures(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in _PICTURE_SUFFIXES)
    if not found:
        raise InvalidArgumentError.field("PICTURES", str(given), "a folder that holds pictures")
    return found
