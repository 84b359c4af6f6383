"""Commands that look at what a model answers: top losses, confusions, calibration, labels, duplicates."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from pyserve.cli import exits
from pyserve.cli.answers import Dataset, EitherPart, Output, WhichPart, tell
from pyserve.cli.models import Name
from pyserve.cli.output import Address, AsJson, connect, note, print_facts, print_json, print_table
from pyserve.client import DEFAULT_ADDRESS
from pyserve.client.insight_calls import Binning, LossOrder, Part
from pyserve.v1 import common_pb2, insight_pb2


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    for command in (
        top_losses,
        confusion_matrix,
        compare_models,
        calibration,
        calibrate,
        label_issues,
        duplicates,
    ):
        parent.command(command.__name__.replace("_", "-"), epilog=exits.EXIT_CODES)(command)


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
    label: Annotated[str, typer.Option(help="Only pictures that have this label in the dataset.")] = "",
    predicted: Annotated[str, typer.Option(help="Only pictures that the model gives this label.")] = "",
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show the pictures a model gets most wrong.

    Or those it is most right about or least sure of: see --order.
    """
    with connect(address) as client:
        answer = client.top_losses(
            name,
            dataset=dataset,
            part=cast(Part, part),
            order=cast(LossOrder, order),
            count=count,
            label=label,
            predicted=predicted,
        )

    def show() -> None:
        rows = [
            (i.path, i.label, i.predicted, f"{i.probability:.2%}", f"{i.label_probability:.2%}", i.loss)
            for i in answer.items
        ]
        print_table(("picture", "label", "predicted", "probability", "of label", "loss"), rows)

    tell(answer, output, as_json, show)


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

    def show() -> None:
        n = len(answer.labels)
        rows = [(label, *answer.counts[i * n : (i + 1) * n]) for i, label in enumerate(answer.labels)]
        print_table(("label ↓  predicted →", *answer.labels), rows)
        print_facts({"accuracy": f"{answer.accuracy:.2%}", "loss": answer.loss})
        if answer.most_confused:
            pairs = [(pair.label, pair.predicted, pair.count) for pair in answer.most_confused]
            print_table(("label", "taken for", "times"), pairs)

    tell(answer, output, as_json, show)


def compare_models(
    before: Annotated[str, typer.Argument(help="The first model, by any of its names.", metavar="BEFORE")],
    after: Annotated[str, typer.Argument(help="The second model.", metavar="AFTER")],
    dataset: Annotated[str, typer.Option(help="datasets/{id}; default: the one AFTER was trained on.")] = "",
    part: WhichPart = "valid",
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same pictures."""
    with connect(address) as client:
        answer = client.compare_models(before, after, dataset=dataset, part=cast(Part, part))

    def show() -> None:
        print_table(
            ("", "accuracy"),
            [(before, f"{answer.before_accuracy:.2%}"), (after, f"{answer.after_accuracy:.2%}")],
        )
        facts: dict[str, object] = {
            "became right": answer.fixed,
            "became wrong": answer.broken,
            "right in both": answer.both_right,
            "wrong in both": answer.both_wrong,
            "probability that this is chance": answer.p_value,
        }
        print_facts(facts)
        rows = [(c.path, c.label, c.before, c.after) for c in answer.changes]
        print_table(("picture", "label", "before", "after"), rows)

    tell(answer, output, as_json, show)


def calibration(
    name: Name,
    dataset: Dataset = "",
    part: WhichPart = "valid",
    bins: Annotated[int, typer.Option(min=1, max=100, help="Bins of the diagram.")] = 15,
    binning: Annotated[
        str, typer.Option(metavar="equal_width|equal_mass", help="Equally wide, or with as many pictures each.")
    ] = "equal_width",
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show how sure a model is, and how right."""
    with connect(address) as client:
        answer = client.calibration(
            name, dataset=dataset, part=cast(Part, part), bins=bins, binning=cast(Binning, binning)
        )

    def show() -> None:
        rows = [
            (f"{b.low:.2f} … {b.high:.2f}", b.count, f"{b.confidence:.1%}", f"{b.accuracy:.1%}")
            for b in answer.before.bins
            if b.count
        ]
        print_table(("sure", "pictures", "mean", "right"), rows)
        facts: dict[str, object] = {
            "calibration error": f"{answer.before.expected_calibration_error:.2%}",
            "at the fitted temperature": f"{answer.after.expected_calibration_error:.2%}",
            "loss": answer.before.loss,
            "loss at the fitted temperature": answer.after.loss,
            "temperature": answer.model_temperature,
            "fitted": answer.model_temperature * answer.temperature,
        }
        print_facts(facts)
        if answer.at_limit:
            note("The fitted temperature is at its limit: the model is always right, or no better than chance.")
        else:
            note(f"Keep it: pyserve calibrate {name}")

    tell(answer, output, as_json, show)


def calibrate(
    name: Name,
    dataset: Dataset = "",
    part: WhichPart = "valid",
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Make a version that is as sure as it is right.

    It has the temperature that `pyserve calibration` shows.
    """
    with connect(address) as client:
        model = client.calibrate(name, dataset=dataset, part=cast(Part, part))
    if as_json:
        print_json(model)
    else:
        print_facts({"model": model.name, "temperature": model.temperature})


def label_issues(
    name: Name,
    dataset: Dataset = "",
    part: EitherPart = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="How many pictures.")] = 20,
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show labels that are probably wrong."""
    with connect(address) as client:
        answer = client.label_issues(name, dataset=dataset, part=cast(Part | None, part), count=count)

    def show() -> None:
        rows = [
            (
                i.path,
                _part_name(i.part),
                i.label,
                i.suggested,
                f"{i.label_share:.0%} to {i.suggested_share:.0%}",
                "yes" if i.confident else "",
            )
            for i in answer.items
        ]
        print_table(("picture", "part", "label", "suggested", "votes", "clear"), rows)
        print_facts({"suspected": answer.suspected, "clear": answer.confident})
        note("Correct them: pyserve datasets relabel DATASET --label PATH=CLASS")

    tell(answer, output, as_json, show)


def duplicates(
    name: Name,
    dataset: Dataset = "",
    part: EitherPart = None,
    least_correlation: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="How alike the pixels' details must be; default: 0.7 or more."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=300, help="How many pairs.")] = 30,
    output: Output = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show pictures that are there twice."""
    with connect(address) as client:
        answer = client.duplicates(
            name,
            dataset=dataset,
            part=cast(Part | None, part),
            least_correlation=least_correlation,
            count=count,
        )

    def show() -> None:
        rows = [(*_picture(p.first), *_picture(p.second), p.correlation) for p in answer.pairs]
        print_table(("picture", "label", "part", "the same as", "label", "part", "correlation"), rows)
        print_facts({"pairs": answer.found, "least correlation": answer.least_correlation})

    tell(answer, output, as_json, show)


def _part_name(part: common_pb2.Part.ValueType) -> str:
    return common_pb2.Part.Name(part).removeprefix("PART_").lower()


def _picture(picture: insight_pb2.DatasetPicture) -> tuple[str, str, str]:
    return picture.path, picture.label, _part_name(picture.part)
