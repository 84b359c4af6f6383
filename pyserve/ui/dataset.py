"""One data set: what is in it, finding its learning rate, training on it."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from pyserve.ui import frame
from pyserve.ui.datasets import facts_of
from pyserve.v1 import datasets_pb2

_ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "vgg16_bn",
    "vgg16",
    "whitenednet",
    "smallnet",
    "resnet20",
    "resnet56",
)
_SMALL_PIXELS = "for small pictures"
_SMALL = ("whitenednet", "smallnet", "resnet20", "resnet56")
_RECIPES = {
    "schedule": "one-cycle, from the weights given",
    "fine_tune": "fine-tune: the head first, then everything",
    "lesson1": "lesson 1: rates found, warm restarts, until it gets worse",
    "auto": "auto: the best within so many minutes",
}


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
            ui.label(f"{len(dataset.origin.corrections)} labels corrected of {dataset.origin.dataset}").classes(
                "opacity-70"
            )
        _classes(dataset)
        _forms(dataset, lr_from, weights)


def _classes(dataset: datasets_pb2.Dataset) -> None:
    shown = dataset.classes[:24]
    with ui.row().classes("gap-2"):
        for member in shown:
            ui.chip(f"{member.name} · {member.train_count + member.valid_count}").props("outline dense")
        if len(dataset.classes) > len(shown):
            ui.label(f"and {len(dataset.classes) - len(shown)} more")


def _forms(dataset: datasets_pb2.Dataset, lr_from: str, weights: str) -> None:
    """One set of options for finder and training: a rate is only good for what it was found with."""
    with frame.section("Network"), ui.grid().classes("w-full grid-cols-1 sm:grid-cols-2 gap-x-6"):
        names = {name: f"{name} ({_SMALL_PIXELS})" if name in _SMALL else name for name in _ARCHITECTURES}
        fields: dict[str, Any] = {
            "architecture": ui.select(names, value="resnet18", label="Architecture").mark("architecture"),
            "weights": ui.input("Weights to begin with", value=weights, placeholder="none: from scratch")
            .props("stack-label")
            .tooltip("imagenet, a file of the server's weights folder, or a model"),
            "image_size": ui.number("Image size, pixels", min=8, max=1024, placeholder="the network's own").props(
                "stack-label"
            ),
            "batch_size": ui.number("Batch size", value=64, min=1, max=4096),
        }
    with frame.section("Find the learning rate"):
        ui.label("A few steps at growing rates; leaves no trace. Take what it suggests for the training.").classes(
            "opacity-70"
        )
        find = ui.button("Find the learning rate").mark("find")
    with frame.section("Train"):
        with ui.grid().classes("w-full grid-cols-1 sm:grid-cols-2 gap-x-6"):
            recipe = ui.select(_RECIPES, value="schedule", label="Recipe").mark("recipe")
            epochs = (
                ui.number("Epochs", min=1, max=10_000, placeholder="the recipe's")
                .props("stack-label")
                .mark("epochs")
            )
            rate = (
                ui.number("Learning rate", placeholder="the recipe's", format="%g")
                .props("stack-label")
                .mark("rate")
            )
            found = ui.input("or that of a finder", value=lr_from, placeholder="jobs/…").props("stack-label")
            minutes = ui.number("Minutes", value=5, min=0.1).bind_visibility_from(recipe, "value", value="auto")
        train = ui.button("Train").mark("train")

    def chosen() -> dict[str, Any]:
        values = {name: field.value or None for name, field in fields.items()}
        for name in ("image_size", "batch_size"):
            values[name] = _whole(values[name])
        return values

    @frame.told
    async def start_finder() -> None:
        with frame.busy(find):
            job = await frame.client().find_learning_rate(dataset=dataset.name, **chosen())
        ui.navigate.to(f"/{job.name}")

    @frame.told
    async def start_training() -> None:
        options: dict[str, Any] = {
            "recipe": recipe.value,
            "learning_rate": rate.value,
            "epochs": _whole(epochs.value),
        }
        if recipe.value == "auto":
            options = {"recipe": "auto", "time_budget_minutes": minutes.value}
            options |= {"image_size": chosen()["image_size"]}
        else:
            options |= {"lr_from": found.value.strip() or None, "batch_size": chosen()["batch_size"]}
            options |= {"image_size": chosen()["image_size"]}
        given = {"architecture": chosen()["architecture"], "weights": chosen()["weights"], **options}
        with frame.busy(train):
            job = await frame.client().train(dataset=dataset.name, **given)
        ui.navigate.to(f"/{job.name}")

    find.on_click(start_finder)
    train.on_click(start_training)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
