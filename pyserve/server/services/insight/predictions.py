"""The calls about what a model answers: top losses, confusions, two models, calibration."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

from pyserve.errors import InvalidArgumentError
from pyserve.inference.description import FORMAT_VERSION, derive_bundle
from pyserve.insight.calibration import DEFAULT_BINS, Bin, Calibration, Reliability, calibrate
from pyserve.insight.comparison import Comparison, compare
from pyserve.insight.predictions import ImageLoss, confusion_matrix, most_confused, top_losses
from pyserve.insight.shared import ShouldStop
from pyserve.server import convert, validate
from pyserve.server.ledger import Entry
from pyserve.server.services.insight.base import InsightCalls
from pyserve.server.services.insight.looker import Question, optional, question
from pyserve.v1 import insight_pb2, models_pb2

DEFAULT_COUNT = 9
MAX_COUNT = 100
MAX_CHANGES = 200
CALIBRATE = "Calibrate"
ORDERS = {
    insight_pb2.LOSS_ORDER_UNSPECIFIED: "most_incorrect",
    insight_pb2.MOST_INCORRECT: "most_incorrect",
    insight_pb2.MOST_CORRECT: "most_correct",
    insight_pb2.MOST_UNCERTAIN: "most_uncertain",
    insight_pb2.HIGHEST_LOSS: "highest_loss",
}


class PredictionCalls(InsightCalls):
    """See the package."""

    async def TopLosses(
        self, request: insight_pb2.TopLossesRequest, context: Any
    ) -> insight_pb2.TopLossesResponse:
        """The pictures that stand out."""
        asked = question(request.model, request.dataset, request.part)
        count = request.count if request.HasField("count") else DEFAULT_COUNT
        validate.in_range(count, 1, MAX_COUNT, "count")
        order = ORDERS.get(request.order)
        if order is None:
            names = ", ".join(insight_pb2.LossOrder.Name(number) for number in ORDERS if number)
            raise InvalidArgumentError.field("order", request.order, f"one of {names}")
        return await self.run(
            context,
            lambda stop: self._top_losses(asked, order, count, request.label, request.predicted, stop),
        )

    async def ConfusionMatrix(
        self, request: insight_pb2.ConfusionMatrixRequest, context: Any
    ) -> insight_pb2.ConfusionMatrixResponse:
        """Which class is taken for which."""
        asked = question(request.model, request.dataset, request.part)
        return await self.run(context, lambda stop: self._confusion_matrix(asked, stop))

    async def CompareModels(
        self, request: insight_pb2.CompareModelsRequest, context: Any
    ) -> insight_pb2.CompareModelsResponse:
        """Two models on the same pictures."""
        before = validate.model_name(request.before, "before")
        after = question(validate.model_name(request.after, "after"), request.dataset, request.part)
        return await self.run(context, lambda stop: self._compare(before, after, stop))

    async def Calibration(
        self, request: insight_pb2.CalibrationRequest, context: Any
    ) -> insight_pb2.CalibrationResponse:
        """How sure a model is against how often it is right."""
        asked = question(request.model, request.dataset, request.part)
        bins = optional(request, "bins")
        binning = request.binning or "equal_width"
        return await self.run(
            context,
            lambda stop: self._calibration(asked, DEFAULT_BINS if bins is None else bins, binning, stop),
        )

    async def Calibrate(self, request: insight_pb2.CalibrateRequest, context: Any) -> models_pb2.Model:
        """A new version of a model with a fitted temperature."""
        asked = question(request.model, request.dataset, request.part)
        entry = Entry(CALIBRATE, {"model": asked.model, "dataset": asked.dataset, "part": asked.part})
        request_id = validate.request_id(request.request_id)
        name = await self.run(
            context,
            lambda stop: self.ledger.once(request_id, entry, lambda: self._calibrate(asked, stop)),
        )
        return convert.model(self.looker.models.get(name), loaded=False)

    def _top_losses(
        self, asked: Question, order: str, count: int, label: str, predicted: str, should_stop: ShouldStop
    ) -> insight_pb2.TopLossesResponse:
        from pyserve.insight.figures import Tile, gallery  # matplotlib is slow to load

        evaluation, _ = self.looker.evaluate(asked, should_stop)
        items = top_losses(evaluation, order, count, label=label, predicted=predicted)
        pictures = self.pictures(evaluation.root, [item.path for item in items])
        tiles = [
            Tile(picture, item.label, item.predicted, item.probability, item.label_probability)
            for picture, item in zip(pictures, items, strict=True)
        ]
        of = f" for {label}" if label else ""
        taken = f" taken for {predicted}" if predicted else ""
        title = f"{order.replace('_', ' ').capitalize()}{of}{taken} of {asked.model}"
        return insight_pb2.TopLossesResponse(
            items=[_image_loss(item) for item in items],
            figures=convert.figures(gallery(tiles, title=title), stem=order),
        )

    def _confusion_matrix(self, asked: Question, should_stop: ShouldStop) -> insight_pb2.ConfusionMatrixResponse:
        from pyserve.insight.figures import confusion_matrix as draw

        evaluation, _ = self.looker.evaluate(asked, should_stop)
        counts = confusion_matrix(evaluation)
        pairs = most_confused(counts, evaluation.labels)
        return insight_pb2.ConfusionMatrixResponse(
            labels=evaluation.labels,
            counts=counts.ravel().tolist(),
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            most_confused=[
                insight_pb2.ConfusedPair(label=p.label, predicted=p.predicted, count=p.count) for p in pairs
            ],
            figures=convert.figures(draw(counts, evaluation.labels)),
        )

    def _compare(self, before: str, after: Question, should_stop: ShouldStop) -> insight_pb2.CompareModelsResponse:
        from pyserve.insight.figures import comparison as draw

        second, manifest = self.looker.evaluate(after, should_stop)
        first, _ = self.looker.evaluate(Question(before, manifest.name, after.part), should_stop)
        found = compare(first, second)
        counts = [confusion_matrix(one) for one in (found.before, found.after)]
        return insight_pb2.CompareModelsResponse(
            labels=found.before.labels,
            before_counts=counts[0].ravel().tolist(),
            after_counts=counts[1].ravel().tolist(),
            before_accuracy=found.before.accuracy,
            after_accuracy=found.after.accuracy,
            both_right=found.both_right,
            both_wrong=found.both_wrong,
            fixed=len(found.fixed),
            broken=len(found.broken),
            p_value=found.p_value,
            changes=_changes(found),
            figures=convert.figures(
                draw(counts[0], counts[1], found.before.labels, names=(before, after.model), title=_verdict(found))
            ),
        )

    def _calibration(
        self, asked: Question, bins: int, binning: str, should_stop: ShouldStop
    ) -> insight_pb2.CalibrationResponse:
        from pyserve.insight.figures import ReliabilityBar, reliability

        evaluation, _ = self.looker.evaluate(asked, should_stop)
        found = calibrate(evaluation, bins, binning)
        panels = [
            (name, [ReliabilityBar(**asdict(b)) for b in state.bins], state.ece)
            for name, state in (("as it is", found.before), (f"at {found.temperature:.3g} ×", found.after))
        ]
        title = f"Calibration of {asked.model}: temperature {found.temperature:.3g} × what it has"
        return insight_pb2.CalibrationResponse(
            before=_reliability(found.before),
            after=_reliability(found.after),
            temperature=found.temperature,
            model_temperature=self.looker.models.get(asked.model).description.temperature,
            at_limit=found.at_limit,
            figures=convert.figures(reliability(panels, title=title)),
        )

    def _calibrate(self, asked: Question, should_stop: ShouldStop) -> str:
        info = self.looker.models.get(asked.model)
        evaluation, manifest = self.looker.evaluate(Question(info.name, asked.dataset, asked.part), should_stop)
        found = calibrate(evaluation)
        own = manifest.digest == info.provenance.get("dataset_digest") and asked.part == "valid"
        changes = {
            "format_version": FORMAT_VERSION,
            "temperature": info.description.temperature * found.temperature,
            "metrics": {**info.metrics, **(_metrics(found) if own else {})},
            "provenance": {
                **info.provenance,
                "calibrated_from": info.name,
                "calibration_dataset": f"{manifest.name} ({asked.part} part)",
            },
            "create_time": time.time(),
        }
        description = info.description.model_copy(update=changes)
        return self.looker.models.add(
            info.model_id, lambda folder: derive_bundle(info.folder, folder, description)
        )


def _metrics(found: Calibration) -> dict[str, float]:
    return {"loss": found.after.loss, "expected_calibration_error": found.after.ece}


def _verdict(found: Comparison) -> str:
    chance = f"p = {found.p_value:.2g}" if found.p_value < 1 else "no difference"
    return f"{len(found.fixed)} pictures became right, {len(found.broken)} became wrong ({chance})"


def _changes(found: Comparison) -> list[insight_pb2.ChangedPicture]:
    labels = found.before.labels
    chosen = [*found.broken.tolist(), *found.fixed.tolist()][:MAX_CHANGES]
    return [
        insight_pb2.ChangedPicture(
            path=found.before.paths[i],
            label=labels[found.before.targets[i]],
            before=labels[found.before.predicted[i]],
            after=labels[found.after.predicted[i]],
        )
        for i in chosen
    ]


def _image_loss(item: ImageLoss) -> insight_pb2.ImageLoss:
    return insight_pb2.ImageLoss(
        path=item.path,
        label=item.label,
        predicted=item.predicted,
        probability=item.probability,
        label_probability=item.label_probability,
        loss=item.loss,
    )


def _reliability(found: Reliability) -> insight_pb2.Reliability:
    return insight_pb2.Reliability(
        bins=[_bin(b) for b in found.bins],
        expected_calibration_error=found.ece,
        largest_error=found.largest_error,
        loss=found.loss,
    )


def _bin(b: Bin) -> insight_pb2.ReliabilityBin:
    confidence, accuracy = (0.0 if math.isnan(v) else v for v in (b.confidence, b.accuracy))
    return insight_pb2.ReliabilityBin(
        low=b.low, high=b.high, count=b.count, confidence=confidence, accuracy=accuracy
    )
