"""What a model gets wrong, picture by picture, and new labels for what was labelled wrong."""

from __future__ import annotations

import asyncio

from nicegui import ui

from pyserve.client.insight_calls import LossOrder
from pyserve.ui import frame
from pyserve.v1 import insight_pb2, models_pb2

_TITLES: dict[LossOrder, str] = {
    "most_incorrect": "most incorrect",
    "most_uncertain": "most uncertain",
    "most_correct": "most correct",
    "highest_loss": "top losses",
}
_PARTS = {"valid": "validation pictures", "train": "training pictures"}
_COUNT = 24
_THUMBNAIL_PIXELS = 224
_LEAVE_OUT = "leave it out"


class Mistakes:
    """A gallery in one of several orders. What is relabelled is gathered, and makes a new data-set version."""

    def __init__(self, model: models_pb2.Model) -> None:
        self._model = model
        self._dataset = model.provenance["dataset"]
        self._labels: dict[str, str] = {}
        self._removed: set[str] = set()
        with ui.row().classes("items-center gap-4 w-full"):
            self._order = ui.toggle(_TITLES, value="most_incorrect", on_change=self.load).props(
                'no-caps padding="4px 10px"'
            )
            self._label = ui.select(
                {"": "all classes", **{label: label for label in model.labels}}, value="", on_change=self.load
            ).props('dense aria-label="class"')
            self._part = ui.select(_PARTS, value="valid", on_change=self.load).props('dense aria-label="part"')
        self._gallery = ui.grid().classes("w-full grid-cols-2 sm:grid-cols-4 lg:grid-cols-6 gap-3")
        with ui.row().classes("items-center gap-4") as self._changes:
            self._told = ui.label("")
            self._apply = ui.button("Make a corrected version of the data set", on_click=self._relabel)
            ui.button("Forget them", on_click=self._forget).props("flat")
        self._count_changes()

    @frame.told
    async def load(self) -> None:
        """Ask for the pictures in the order that is chosen, and show them."""
        self._gallery.clear()
        with self._gallery:
            ui.spinner(size="lg")
        try:
            answer = await frame.client().top_losses(
                self._model.name,
                part=self._part.value,
                order=self._order.value,
                label=self._label.value,
                count=_COUNT,
            )
        finally:
            self._gallery.clear()
        with self._gallery:
            if not answer.items:
                ui.label("None.").classes("opacity-70")
            places = [self._card(item) for item in answer.items]
        await asyncio.gather(*(self._thumbnail(*pair) for pair in zip(places, answer.items, strict=True)))

    def _card(self, item: insight_pb2.ImageLoss) -> ui.element:
        with ui.column().classes("gap-0 min-w-0"):
            place = ui.element("div").classes("w-full aspect-square")
            right = item.label == item.predicted
            ui.label(f"labelled {item.label} · {frame.percent(item.label_probability)}").classes(
                "text-sm truncate w-full"
            )
            if not right:
                ui.label(f"taken for {item.predicted} · {frame.percent(item.probability)}").classes(
                    "text-sm text-negative truncate w-full"
                )
            label = ui.select(
                [*self._model.labels, _LEAVE_OUT],
                value=_LEAVE_OUT if item.path in self._removed else self._labels.get(item.path, item.label),
                on_change=lambda event: self._change(item, event.value),
            )
            label.props("dense options-dense").classes("w-full")
            label.props["aria-label"] = f"label of {item.path}"
        return place

    async def _thumbnail(self, place: ui.element, item: insight_pb2.ImageLoss) -> None:
        figure = await frame.client().get_picture(self._dataset, item.path, max_side=_THUMBNAIL_PIXELS)
        with place:
            frame.picture(frame.figure_url(figure), item.path).classes("w-full h-full object-contain")

    def _change(self, item: insight_pb2.ImageLoss, label: str) -> None:
        self._labels.pop(item.path, None)
        self._removed.discard(item.path)
        if label == _LEAVE_OUT:
            self._removed.add(item.path)
        elif label != item.label:
            self._labels[item.path] = label
        self._count_changes()

    def _count_changes(self) -> None:
        count = len(self._labels) + len(self._removed)
        self._changes.set_visibility(count > 0)
        self._told.text = f"{len(self._labels)} labels corrected, {len(self._removed)} pictures left out"

    async def _forget(self) -> None:
        self._labels.clear()
        self._removed.clear()
        self._count_changes()
        await self.load()

    @frame.told
    async def _relabel(self) -> None:
        with frame.busy(self._apply):
            dataset = await frame.client().relabel_dataset(
                self._dataset, self._labels, removed=sorted(self._removed)
            )
        ui.navigate.to(f"/{dataset.name}?weights={self._model.name}")
