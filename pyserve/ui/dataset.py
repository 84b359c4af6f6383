"""One data set: what is in it, finding its learning rate, training on it."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from pyserve.ui import frame
from pyserve.ui.datasets import facts_of
from pyserve.v1 import datasets_pb2

SMALL_PICTURES = ("whitenednet", "smallnet", "resnet20", "resnet56")
ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "vgg16_bn", "vgg16", *SMALL_PICTURES)
_RECIPES = {
    "schedule": "one-cycle, from the weights given",
    "fine_tune": "fine-tune: the head first, then everything",
    "lesson1": "lesson 1: rates found, warm restarts, until it gets worse",
    "auto": "auto: the best within so many minutes",
}
_GRID = "w-full grid-cols-1 sm:grid-cols-2 gap-x-6"


async def page(dataset_id: str, lr_from: str = "", weights: str = "") -> None:
    """Build the page.

    Args:
        dataset_id: of the data set.
        lr_from: a learning-rate finder whose rate the training takes, "jobs/{id}".
        weights: what the training begins with, such as the model of the mistakes that were corrected.
    """
    with frame.page(dataset_id, beside="data set"):
        content = ui.column().classes("w-full gap-4")
    await _fill(content, f"datasets/{dataset_id}", lr_from, weights)


@frame.filled
async def _fill(content: ui.column, name: str, lr_from: str, weights: str) -> None:
    dataset = await frame.client().get_dataset(name)
    with content:
        ui.label(facts_of(dataset))
        if dataset.origin.dataset:
            with ui.row().classes("gap-1"):
                ui.label(f"{len(dataset.origin.corrections)} labels corrected of").classes("opacity-70")
                ui.link(dataset.origin.dataset, f"/{dataset.origin.dataset}")
        _classes(dataset)
    network = await _network(lr_from, weights)
    with content:
        Forms(dataset.name, network, lr_from)


async def _network(lr_from: str, weights: str) -> dict[str, Any]:
    """What the fields begin with: as the finder had them, or as the model is that training goes on from."""
    network: dict[str, Any] = {
        "architecture": ARCHITECTURES[0],
        "weights": weights,
        "image_size": None,
        "batch_size": 64,
    }
    if lr_from:
        training = (await frame.client().get_job(lr_from)).find_learning_rate.training
        for name in network:
            if getattr(training, name):
                network[name] = getattr(training, name)
    elif weights.startswith("models/"):
        model = await frame.client().get_model(weights)
        network |= {"architecture": model.architecture, "image_size": model.image_size}
    return network


def _classes(dataset: datasets_pb2.Dataset) -> None:
    shown = dataset.classes[:24]
    with ui.row().classes("gap-2"):
        for member in shown:
            ui.label(f"{member.name} · {member.train_count + member.valid_count}").classes(
                "border rounded-full px-2"
            )
        if len(dataset.classes) > len(shown):
            ui.label(f"and {len(dataset.classes) - len(shown)} more")


class Forms:
    """One set of options for finder and training: a rate is only good for what it was found with."""

    def __init__(self, dataset: str, network: dict[str, Any], lr_from: str) -> None:
        self._dataset = dataset
        with frame.section("Network"):
            self._network = self._network_fields(network)
        with frame.section("Find the learning rate"):
            ui.label(
                "A few steps at growing rates; leaves no trace. Take what it suggests for the training."
            ).classes("opacity-70")
            self._find = ui.button("Find the learning rate", on_click=self._start_finder)
        with frame.section("Train"):
            self._recipe = ui.select(_RECIPES, value="schedule", label="Recipe").classes("w-full")
            self._minutes = _number("Minutes", 5, min=0.1)
            self._minutes.bind_visibility_from(self._recipe, "value", value="auto")
            self._training = self._training_fields(lr_from)
            self._train = ui.button("Train", on_click=self._start_training)

    @staticmethod
    def _network_fields(network: dict[str, Any]) -> dict[str, Any]:
        names = {
            name: f"{name} (for small pictures)" if name in SMALL_PICTURES else name for name in ARCHITECTURES
        }
        names.setdefault(network["architecture"], network["architecture"])
        with ui.grid().classes(_GRID):
            return {
                "architecture": ui.select(names, value=network["architecture"], label="Architecture"),
                "weights": _text("Weights to begin with", network["weights"], "none: from scratch").tooltip(
                    "imagenet, a file of the server's weights folder, or a model"
                ),
                "image_size": _number(
                    "Image size, pixels", network["image_size"], "the network's own", precision=0
                ),
                "batch_size": _number("Batch size", network["batch_size"], "the server's", precision=0),
            }

    def _training_fields(self, lr_from: str) -> dict[str, Any]:
        """What recipe `auto` chooses by itself, and the others are told."""
        with ui.grid().classes(_GRID).bind_visibility_from(self._recipe, "value", lambda value: value != "auto"):
            return {
                "epochs": _number("Epochs", None, "the recipe's", precision=0),
                "learning_rate": _number("Learning rate", None, "the recipe's", format="%g"),
                "lr_from": _text("or that of a finder", lr_from, "jobs/…"),
            }

    @frame.told
    async def _start_finder(self) -> None:
        with frame.busy(self._find):
            job = await frame.client().find_learning_rate(dataset=self._dataset, **_values(self._network))
        ui.navigate.to(f"/{job.name}")

    @frame.told
    async def _start_training(self) -> None:
        fields = _values(self._network) | {"recipe": self._recipe.value}
        if self._recipe.value == "auto":
            del fields["batch_size"]
            fields["time_budget_minutes"] = self._minutes.value
        else:
            fields |= _values(self._training)
        with frame.busy(self._train):
            job = await frame.client().train(dataset=self._dataset, **fields)
        ui.navigate.to(f"/{job.name}")


def _number(
    label: str,
    value: float | None,
    placeholder: str = "",
    *,
    precision: int | None = None,
    min: float | None = None,
    format: str | None = None,
) -> ui.number:
    """A field that may stay empty; what is too small or too large, the server tells."""
    field = ui.number(label, value=value, placeholder=placeholder, precision=precision, min=min, format=format)
    return field.props("stack-label")


def _text(label: str, value: str, placeholder: str) -> ui.input:
    return ui.input(label, value=value, placeholder=placeholder).props("stack-label")


def _values(fields: dict[str, Any]) -> dict[str, Any]:
    """What the fields say; None, which leaves it to the server, where they are empty."""
    values = {}
    for name, field in fields.items():
        value = field.value.strip() if isinstance(field.value, str) else field.value
        whole = isinstance(value, float) and value.is_integer()
        values[name] = (int(value) if whole else value) if value not in ("", None) else None
    return values
