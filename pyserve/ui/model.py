"""One model: drop a picture and see what it sees in it; its confusion matrix; its mistakes."""

from __future__ import annotations

from nicegui import ui

from pyserve.ui import frame
from pyserve.ui.mistakes import Mistakes
from pyserve.v1 import models_pb2, predict_pb2

_TOP = 5


async def page(model_id: str, version: str = "") -> None:
    """Build the page.

    Args:
        model_id: of the model, an alias included ("pets@champion").
        version: number; default: the newest.
    """
    name = f"models/{model_id}" + (f"/versions/{version}" if version else "")
    with frame.page(name.partition("/")[2].replace("/versions/", ", version "), beside="model"):
        content = ui.column().classes("w-full gap-4")
    await _fill(content, name)


@frame.filled
async def _fill(content: ui.column, name: str) -> None:
    model = await frame.client().get_model(name)
    with content:
        ui.label(_facts(model)).classes("opacity-70")
        with frame.section("Predict"):
            Prediction(model)
        if not model.provenance.get("dataset"):
            ui.label("It names no data set of its own, so there are no mistakes to look at.").classes("opacity-70")
            return
        with frame.section("Confusion matrix"):
            matrix = ui.column().classes("w-full")
        with frame.section("Mistakes"):
            mistakes = Mistakes(model)
    await _show_matrix(matrix, model)
    await mistakes.load()


def _facts(model: models_pb2.Model) -> str:
    accuracy = model.metrics.get("accuracy")
    facts = [model.architecture, f"{model.parameter_count / 1e6:.2f} M parameters", f"{model.image_size} pixels"]
    if accuracy is not None:
        facts.append(f"accuracy {frame.percent(accuracy)}")
    return ", ".join(facts)


class Prediction:
    """A picture's classes, and which of its parts speak for the first."""

    def __init__(self, model: models_pb2.Model) -> None:
        self._model = model
        self._picture = b""
        frame.picture_upload(self._take)
        with ui.row().classes("w-full gap-6"):
            self._scores = ui.column().classes("w-full sm:w-72 gap-1")
            self._map = ui.column().classes("w-full sm:flex-1")

    async def _take(self, picture: bytes) -> None:
        self._picture = picture
        answer = await frame.client().predict(self._model.name, [self._picture], top_k=_TOP)
        self._show_scores(answer.predictions[0])
        await self._explain(answer.predictions[0].scores[0].label)

    def _show_scores(self, prediction: predict_pb2.Prediction) -> None:
        self._scores.clear()
        with self._scores:
            for place, score in enumerate(prediction.scores):
                with ui.row().classes("w-full items-baseline justify-between no-wrap"):
                    ui.label(score.label).classes("font-medium" if place == 0 else "")
                    ui.label(frame.percent(score.probability))
                ui.linear_progress(score.probability, show_value=False).props("rounded")
            if len(prediction.scores) > 1:
                ui.label("See what speaks for").classes("opacity-70 pt-2")
                labels = [score.label for score in prediction.scores]
                ui.select(labels, value=labels[0], on_change=lambda event: self._explain(event.value)).props(
                    'dense aria-label="class to explain"'
                )

    @frame.told
    async def _explain(self, label: str) -> None:
        self._map.clear()
        with self._map:
            ui.spinner(size="lg")
        try:
            answer = await frame.client().explain(self._model.name, self._picture, label=label)
        finally:
            self._map.clear()
        with self._map:
            frame.show(answer.figures, f"Grad-CAM: what speaks for {answer.label} in layer {answer.layer}")


@frame.told
async def _show_matrix(place: ui.column, model: models_pb2.Model) -> None:
    with place:
        spinner = ui.spinner(size="lg")
        try:
            answer = await frame.client().confusion_matrix(model.name)
        finally:
            spinner.delete()
        ui.label(f"{frame.percent(answer.accuracy)} of {sum(answer.counts)} validation pictures are right")
        frame.show(answer.figures, "Confusion matrix", width="36rem")
        for pair in answer.most_confused[:5]:
            ui.label(f"{pair.count} × {pair.label} taken for {pair.predicted}").classes("text-sm")
