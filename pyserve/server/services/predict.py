"""`pyserve.v1.Predict`: what is on the picture."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserve.config import Settings
from pyserve.errors import CancelledError, DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError
from pyserve.inference.predictor import Predictor, PredictorCache, Score, ShouldStop
from pyserve.server import validate
from pyserve.server.pools import Pools
from pyserve.v1 import predict_pb2, predict_pb2_grpc

DEFAULT_TOP_K = 5
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}

Rows = list[list[Score]]
Work = Callable[[Predictor, ShouldStop], Rows]


class PredictService(predict_pb2_grpc.PredictServicer):
    """Prediction over gRPC."""

    def __init__(self, predictors: PredictorCache, pools: Pools, settings: Settings) -> None:
        self._predictors = predictors
        self._pools = pools
        self._max_images = settings.max_predict_images

    async def Predict(self, request: predict_pb2.PredictRequest, context: Any) -> predict_pb2.PredictResponse:
        """Probabilities of the most likely classes for each picture."""
        name = validate.model_name(request.model, "model")
        top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
        if top_k < 1:
            raise InvalidArgumentError.field("top_k", top_k, "≥ 1")
        work = self._work(request, top_k)
        caller = _Caller(context)
        model = await self._pools.slow.run(self._predictors.get, name)
        try:
            rows = await self._pools.predict.run(caller.ask, work, model)
        finally:
            caller.gone.set()
        return predict_pb2.PredictResponse(
            model=model.name,
            predictions=[predict_pb2.Prediction(scores=[_class_score(s) for s in row]) for row in rows],
        )

    def _work(self, request: predict_pb2.PredictRequest, top_k: int) -> Work:
        """What there is to do, its input checked as far as that needs no model."""
        tta = request.tta
        if request.WhichOneof("input") == "tensor":
            array = self._tensor(request.tensor)
            return lambda model, should_stop: model.predict_tensor(array, top_k, tta, should_stop=should_stop)
        images = list(request.images.data)
        if not images:
            raise InvalidArgumentError.field("images", "no picture", "at least one, or a tensor")
        self._check_count(len(images), "images.data")
        return lambda model, should_stop: model.predict_encoded(images, top_k, tta, should_stop=should_stop)

    def _tensor(self, tensor: predict_pb2.Tensor) -> npt.NDArray[Any]:
        """The tensor of a request."""
        shape = tuple(tensor.shape)
        if len(shape) != 4 or min(shape) < 1 or 3 not in (shape[1], shape[3]):
            raise InvalidArgumentError.field("tensor.shape", list(shape), "[N, 3, H, W] or [N, H, W, 3], each ≥ 1")
        self._check_count(shape[0], "tensor.shape")
        if tensor.dtype not in _DTYPES:
            raise InvalidArgumentError.field("tensor.dtype", tensor.dtype, f"one of {', '.join(_DTYPES)}")
        dtype = _DTYPES[tensor.dtype]
        expected = math.prod(shape) * dtype.itemsize
        if len(tensor.data) != expected:
            raise InvalidArgumentError.field(
                "tensor.data", f"{len(tensor.data)} bytes", f"{expected} bytes for {list(shape)} of {tensor.dtype}"
            )
        return np.frombuffer(tensor.data, dtype).reshape(shape)

    def _check_count(self, count: int, field: str) -> None:
        if count > self._max_images:
            raise ResourceExhaustedError.field(
                field, f"{count} pictures", f"at most {self._max_images}, the server's max_predict_images"
            )


class _Caller:
    """Whether anybody still wants the answer: the deadline has not passed, and the call was not cancelled."""

    def __init__(self, context: Any) -> None:
        left_s = context.time_remaining()
        self._end = math.inf if left_s is None else time.monotonic() + left_s
        self.gone = threading.Event()

    def ask(self, work: Work, model: Predictor) -> Rows:
        """The answer of the model; runs in a thread.

        Raises:
            DeadlineExceededError: the deadline passed before or meanwhile.
        """
        try:
            self._check()
            return work(model, self._is_over)
        except CancelledError:
            self._check()
            raise

    def _is_over(self) -> bool:
        return self.gone.is_set() or time.monotonic() >= self._end

    def _check(self) -> None:
        if time.monotonic() >= self._end:
            raise DeadlineExceededError("the call's deadline passed before the model had answered")


def _class_score(score: Score) -> predict_pb2.ClassScore:
    return predict_pb2.ClassScore(label=score.label, index=score.index, probability=score.probability)
