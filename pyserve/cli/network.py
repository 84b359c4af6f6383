"""Commands that look into a network: layers, filters, feature maps, patches, explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from pyserve.cli import exits
from pyserve.cli.answers import Channels, Dataset, Layer, Output, Rule, WhichPart, tell
from pyserve.cli.models import Name
from pyserve.cli.output import Address, AsJson, connect, note, print_facts, print_json, print_table
from pyserve.client import DEFAULT_ADDRESS
from pyserve.client.insight_calls import Method, Part
from pyserve.client.insight_calls import Rule as RuleName

ThePicture = Annotated[
    Path | None, typer.Argument(help="Picture file; or name one of a dataset with --path.", metavar="PICTURE")
]
PicturePath = Annotated[str, typer.Option("--path", help="Path of a picture inside the dataset.")]
OfLayer = Annotated[str, typer.Option("--layer", help="A layer of `pyserve layers`.")]
HowMany = Annotated[int | None, typer.Option("--channels", min=1, help="How many feature maps.")]


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    for command in (layers, filters, feature_maps, top_patches, evolution, explain):
        parent.command(command.__name__.replace("_", "-"), epilog=exits.EXIT_CODES)(command)


def layers(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the layers of a network."""
    with connect(address) as client:
        answer = client.layers(name)
    if as_json:
        print_json(answer)
        return
    rows = [
        (x.name, x.kind, x.channels, f"{x.height} × {x.width}", f"{x.field_height} × {x.field_width}")
        for x in answer.layers
    ]
    print_table(("layer", "kind", "feature maps", "places", "each sees"), rows)
    note(f"Usually looked at: {answer.last_layer}. Projections: {answer.rule}.")


def filters(
    name: Name, output: Output = None, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False
) -> None:
    """Show the first layer's filters."""
    with connect(address) as client:
        answer = client.filters(name)
    sizes = " × ".join(map(str, answer.weights.shape))
    tell(answer, output, as_json, lambda: print_facts({"layer": answer.layer, "weights": sizes}))


def feature_maps(
    name: Name,
    picture: ThePicture = None,
    path: PicturePath = "",
    dataset: Dataset = "",
    layer: OfLayer = "",
    channel: Channels = None,
    count: HowMany = None,
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show a layer's feature maps of one picture."""
    with connect(address) as client:
        answer = client.feature_maps(
            name, picture, path=path, dataset=dataset, layer=layer, channels=channel or (), count=count
        )

    def show() -> None:
        size = f"{answer.layer.height} × {answer.layer.width}"
        print_facts({"layer": answer.layer.name, "size": size, "maps": ", ".join(map(str, answer.channels))})

    tell(answer, output, as_json, show)


def top_patches(
    name: Name,
    layer: Layer,
    dataset: Dataset = "",
    part: WhichPart = "valid",
    channel: Channels = None,
    channels: HowMany = None,
    count: Annotated[int | None, typer.Option(min=1, max=16, help="Pictures for each; default 9.")] = None,
    rule: Rule = "",
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show what feature maps look for.

    For each the pictures that excite it most, and what in them does.
    """
    with connect(address) as client:
        answer = client.top_patches(
            name,
            layer,
            dataset=dataset,
            part=cast(Part, part),
            channels=channel or (),
            channel_count=channels,
            count=count,
            rule=cast(RuleName, rule),
        )

    def show() -> None:
        rows = [
            (c.channel, p.activation, p.path, p.label, f"row {p.row}, column {p.column}")
            for c in answer.channels
            for p in c.patches
        ]
        print_table(("feature map", "activation", "picture", "label", "place"), rows)

    tell(answer, output, as_json, show)


def evolution(
    job: Annotated[str, typer.Argument(help="jobs/{id} of a training with --snapshots.", metavar="JOB")],
    layer: Layer,
    part: WhichPart = "valid",
    channel: Channels = None,
    channels: HowMany = None,
    rule: Rule = "",
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show how features came about over epochs."""
    with connect(address) as client:
        answer = client.evolution(
            job,
            layer,
            part=cast(Part, part),
            channels=channel or (),
            channel_count=channels,
            rule=cast(RuleName, rule),
        )

    def show() -> None:
        rows = [
            (c.channel, p.epoch, p.patch.activation, p.patch.path)
            for c in answer.channels
            for p in c.patches
            if p.HasField("patch")
        ]
        print_table(("feature map", "epoch", "activation", "picture"), rows)

    tell(answer, output, as_json, show)


def explain(
    name: Name,
    picture: ThePicture = None,
    path: PicturePath = "",
    dataset: Dataset = "",
    method: Annotated[str, typer.Option(metavar="grad_cam|occlusion|deconvnet", help="How.")] = "grad_cam",
    label: Annotated[str, typer.Option(help="Class that is asked about; default: the likeliest.")] = "",
    layer: OfLayer = "",
    channel: Annotated[int | None, typer.Option(min=0, help="Feature map; default: the strongest.")] = None,
    square_size: Annotated[int | None, typer.Option(min=1, help="Side of the grey square, pixels.")] = None,
    square_stride: Annotated[int | None, typer.Option(min=1, help="Pixels between its positions.")] = None,
    rule: Rule = "",
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show why a model says what it says."""
    with connect(address) as client:
        answer = client.explain(
            name,
            picture,
            path=path,
            dataset=dataset,
            method=cast(Method, method),
            label=label,
            layer=layer,
            channel=channel,
            square_size=square_size,
            square_stride=square_stride,
            rule=cast(RuleName, rule),
        )

    def show() -> None:
        print_table(("class", "probability"), [(s.label, f"{s.probability:.2%}") for s in answer.scores])
        asked = {"asked about": answer.label, "layer": answer.layer}
        print_facts({**asked, "feature map": answer.channel if answer.HasField("channel") else ""})

    tell(answer, output, as_json, show)
