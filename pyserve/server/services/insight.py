"""`pyserve.v1.Insight`: what a model gets wrong, and what runs underneath."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyserve import kernels
from pyserve.data.catalog import Catalog
from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_store import ModelStore
from pyserve.insight.evaluate import EvaluationCache
from pyserve.insight.pictures import load_pictures
from pyserve.insight.predictions import Evaluation, ImageLoss, confusion_matrix, most_confused, top_losses
from pyserve.server import convert, validate
from pyserve.server.pools import Pools
from pyserve.v1 import insight_pb2, insight_pb2_grpc

DEFAULT_COUNT = 9
MAX_COUNT = 100
_ORDERS = {
    insight_pb2.LOSS_ORDER_UNSPECIFIED: "most_incorrect",
    insight_pb2.MOST_INCORRECT: "most_incorrect",
    insight_pb2.MOST_CORRECT: "most_correct",
    insight_pb2.MOST_UNCERTAIN: "most_uncertain",
    insight_pb2.HIGHEST_LOSS: "highest_loss",
}


class _Question(NamedTuple):
    """Which model on which pictures."""

    model: str
    dataset: str
    part: validate.Part


class InsightService(insight_pb2_grpc.InsightServicer):
    """Insight over gRPC.

    Args:
        predictors: loaded models.
        model_store: tells on which dataset a model was trained.
        catalog: the datasets.
        cache_dir: decoded pictures, shared with the jobs.
        pools: threads for blocking work.
        max_image_pixels: larger pictures are not shown.
    """

    def __init__(
        self,
        predictors: LoadedModels,
        model_store: ModelStore,
        catalog: Catalog,
        cache_dir: Path,
        pools: Pools,
        max_image_pixels: int,
    ) -> None:
        self._predictors = predictors
        self._models = model_store
        self._catalog = catalog
        self._cache_dir = cache_dir
        self._pools = pools
        self._max_image_pixels = max_image_pixels
        self._evaluations = EvaluationCache()

    async def TopLosses(
        self, request: insight_pb2.TopLossesRequest, context: Any
    ) -> insight_pb2.TopLossesResponse:
        """The pictures that stand out."""
        question = _question(request)
        count = request.count if request.HasField("count") else DEFAULT_COUNT
        validate.in_range(count, 1, MAX_COUNT, "count")
        order = _ORDERS.get(request.order)
        if order is None:
            names = ", ".join(insight_pb2.LossOrder.Name(number) for number in _ORDERS if number)
            raise InvalidArgumentError.field("order", request.order, f"one of {names}")
        return await self._pools.slow.run(self._top_losses, question, order, count)

    async def ConfusionMatrix(
        self, request: insight_pb2.ConfusionMatrixRequest, context: Any
    ) -> insight_pb2.ConfusionMatrixResponse:
        """Which class is taken for which."""
        return await self._pools.slow.run(self._confusion_matrix, _question(request))

    async def Kernels(self, request: insight_pb2.KernelsRequest, context: Any) -> insight_pb2.KernelsResponse:
        """What runs underneath."""
        info = kernels.info()
        return insight_pb2.KernelsResponse(
            isa_found=info.isa_found,
            isa_used=info.isa_in_use,
            cuda_loaded=info.cuda_loaded,
            build=info.build,
            variants=[
                insight_pb2.KernelVariant(
                    name=v.name, op=v.op, device=v.device, isa=v.needs, available=v.available, calls=v.calls
                )
                for v in info.variants
            ],
            fallbacks=[
                insight_pb2.KernelFallback(op=op, reason=reason, calls=calls)
                for key, calls in info.fallbacks.items()
                for op, _, reason in (key.partition(": "),)
            ],
        )

    def _top_losses(self, question: _Question, order: str, count: int) -> insight_pb2.TopLossesResponse:
        from pyserve.insight.figures import gallery  # matplotlib is slow to load

        evaluation = self._evaluate(question)
        items = top_losses(evaluation, order, count)
        title = f"{order.replace('_', ' ').capitalize()} of {question.model}"
        return insight_pb2.TopLossesResponse(
            items=[_image_loss(item) for item in items],
            figures=convert.figures(gallery(self._tiles(evaluation.root, items), title=title), stem=order),
        )

    def _confusion_matrix(self, question: _Question) -> insight_pb2.ConfusionMatrixResponse:
        from pyserve.insight.figures import confusion_matrix as draw  # matplotlib is slow to load

        evaluation = self._evaluate(question)
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

    def _evaluate(self, question: _Question) -> Evaluation:
        dataset = question.dataset or self._models.get(question.model).dataset
        if not dataset:
            raise FailedPreconditionError(
                f"{question.model} does not say on which dataset it was trained: name one in `dataset`"
            )
        manifest = self._catalog.get(dataset)
        predictor = self._predictors.get(question.model)
        return self._evaluations.get(predictor, manifest, question.part, self._cache_dir)

    def _tiles(self, root: str, items: Sequence[ImageLoss]) -> list[Any]:
        from pyserve.insight.figures import Tile

        pictures = load_pictures(root, [item.path for item in items], max_pixels=self._max_image_pixels)
        return [
            Tile(picture, item.label, item.predicted, item.probability, item.label_probability)
            for picture, item in zip(pictures, items, strict=True)
        ]


def _question(request: insight_pb2.TopLossesRequest | insight_pb2.ConfusionMatrixRequest) -> _Question:
    return _Question(
        validate.model_name(request.model, "model"),
        validate.dataset_name(request.dataset, "dataset") if request.dataset else "",
        validate.part(request.part),
    )


def _image_loss(item: ImageLoss) -> insight_pb2.ImageLoss:
    return insight_pb2.ImageLoss(
        path=item.path,
        label=item.label,
        predicted=item.predicted,
        probability=item.probability,
        label_probability=item.label_probability,
        loss=item.loss,
    )
