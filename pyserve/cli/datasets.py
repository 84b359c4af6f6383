"""`pyserve datasets …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pyserve.cli.output import (
    Address,
    AsJson,
    connect,
    format_bytes,
    format_time,
    note,
    print_facts,
    print_json,
    print_table,
    save_figures,
)
from pyserve.cli.progress import upload as upload_with_bar
from pyserve.client import DEFAULT_ADDRESS
from pyserve.errors import InvalidArgumentError
from pyserve.v1 import datasets_pb2

app = typer.Typer(help="Take in, list, describe and remove datasets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="datasets/{id}", metavar="DATASET")]
DatasetId = Annotated[str, typer.Argument(help="Name part of the new dataset: a-z, 0-9, - and _.", metavar="ID")]
ValidFraction = Annotated[
    float | None,
    typer.Option(help="Part of each class kept for validation where there is no train/ and valid/; default 0.2."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of that split; default 0.")]
RefuseBad = Annotated[
    bool, typer.Option("--refuse-bad", help="Refuse a dataset with bad pictures instead of leaving them out.")
]


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="datasets")


def _options(valid_fraction: float | None, seed: int | None, refuse_bad: bool) -> dict[str, Any]:
    bad_images = "refuse" if refuse_bad else "leave_out"
    return {"valid_fraction": valid_fraction, "seed": seed, "bad_images": bad_images}


@app.command()
def upload(
    dataset_id: DatasetId,
    path: Annotated[Path, typer.Argument(help="Folder with one sub-folder per class, or a zip or tar of one.")],
    valid_fraction: ValidFraction = None,
    seed: Seed = None,
    refuse_bad: RefuseBad = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Send a folder of pictures, or an archive of one, to the server."""
    with connect(address) as client:
        show_dataset(
            upload_with_bar(client, path, dataset_id, **_options(valid_fraction, seed, refuse_bad)), as_json
        )


@app.command()
def register(
    dataset_id: DatasetId,
    path: Annotated[str, typer.Argument(help="Folder on the server, under one of its dataset_roots.")],
    valid_fraction: ValidFraction = None,
    seed: Seed = None,
    refuse_bad: RefuseBad = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of a folder that lies on the server already."""
    with connect(address) as client:
        dataset = client.register_dataset(path, dataset_id, **_options(valid_fraction, seed, refuse_bad))
    show_dataset(dataset, as_json)


@app.command("list")
def list_(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List all datasets, newest first."""
    with connect(address) as client:
        datasets = client.list_datasets()
    if as_json:
        print_json(datasets)
        return
    rows = [
        (
            d.name,
            len(d.classes),
            d.train_count,
            d.valid_count,
            format_bytes(d.size_bytes),
            format_time(d.create_time),
        )
        for d in datasets
    ]
    print_table(("dataset", "classes", "train", "valid", "size", "made"), rows)


@app.command()
def show(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Describe one dataset: classes, split, left-out pictures."""
    with connect(address) as client:
        show_dataset(client.get_dataset(name), as_json)


@app.command()
def picture(
    name: Name,
    path: Annotated[str, typer.Argument(help="The picture's path inside the dataset.", metavar="PATH")],
    output: Annotated[Path, typer.Option(help="Folder to save it in; made if missing.")] = Path(),
    max_side: Annotated[
        int | None, typer.Option(help="Pixels of its longer side at most, 16 to 2048; default 512.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Save one picture of a dataset as a JPEG, small enough to be shown, and print the file's path."""
    with connect(address) as client:
        [saved] = save_figures([client.get_picture(name, path, max_side=max_side)], output)
    print(saved)


@app.command()
def relabel(
    name: Name,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="PATH=CLASS of a picture with a wrong label; repeatable."),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="PATH of a picture to leave out; repeatable.")
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(help="JSON file of {PATH: CLASS}; null as a class leaves the picture out.")
    ] = None,
    new_id: Annotated[str, typer.Option("--id", help="Name part of the new version; default: with -v{n}.")] = "",
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Make a new version of a dataset from corrected labels. The old one stays as it is."""
    labels, removed = _corrections(label or [], corrections)
    with connect(address) as client:
        dataset = client.relabel_dataset(name, labels, removed=[*removed, *(remove or [])], dataset_id=new_id)
    show_dataset(dataset, as_json)


@app.command()
def delete(name: Name, address: Address = DEFAULT_ADDRESS) -> None:
    """Remove a dataset that no unfinished job uses."""
    with connect(address) as client:
        client.delete_dataset(name)
    note(f"removed {name}")


def _corrections(given: list[str], file: Path | None) -> tuple[dict[str, str], list[str]]:
    """Right labels by path, and the paths of pictures to leave out."""
    wanted: dict[str, str | None] = {}
    if file is not None:
        try:
            wanted |= json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            expected = f"a JSON file of {{path: class}} ({error})"
            raise InvalidArgumentError.field("--corrections", str(file), expected) from None
    for text in given:
        path, sign, label = text.rpartition("=")
        if not (path and sign and label):
            raise InvalidArgumentError.field("--label", text, "PATH=CLASS")
        wanted[path] = label
    labels = {path: label for path, label in wanted.items() if label is not None}
    return labels, [path for path, label in wanted.items() if label is None]


def show_dataset(dataset: datasets_pb2.Dataset, as_json: bool) -> None:
    """A dataset on stdout."""
    if as_json:
        print_json(dataset)
        return
    facts: dict[str, object] = {
        "dataset": dataset.name,
        "pictures": f"{dataset.train_count} train, {dataset.valid_count} valid",
        "split": "its own train/ and valid/" if dataset.has_own_split else "drawn from the seed",
        "size": format_bytes(dataset.size_bytes),
        "digest": dataset.digest,
        "made": format_time(dataset.create_time),
    }
    if dataset.HasField("origin"):
        facts["made from"] = f"{dataset.origin.dataset}, {len(dataset.origin.corrections)} corrections"
    print_facts(facts)
    print_table(("class", "train", "valid"), [(c.name, c.train_count, c.valid_count) for c in dataset.classes])
    if dataset.bad_images:
        rows = [(bad.path, bad.reason) for bad in dataset.bad_images]
        print_table(("left out", "why"), rows)
