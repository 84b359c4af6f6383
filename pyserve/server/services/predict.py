"""`pyserve.v1.Predict`: what is on the picture."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserve.errors import InvalidArgumentError, PyserveError
from pyserve.inference.predictor import DEFAULT_TOP_K, Predictor, Probabilities
from pyserve.inference.work import DEFAULT_PRIORITY, Pictures, Terms
from pyserve.server import validate
from pyserve.server.pools import Pools
from pyserve.server.prediction import MANY_PROBABILITIES, STREAM_LIMIT, Prediction, deadline_of
from pyserve.server.status import StatusTeller
from pyserve.server.streams import as_done
from pyserve.v1 import predict_pb2, predict_pb2_grpc

_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}


class PredictService(predict_pb2_grpc.PredictServicer):
    """Prediction over gRPC.

    Args:
        prediction: answers.
        pools: threads for ranking large answers.
        statuses: tells the clients of streams what went wrong.
    """

    def __init__(self, prediction: Prediction, pools: Pools, statuses: StatusTeller) -> None:
        self._prediction = prediction
        self._pools = pools
        self._statuses = statuses

    async def Predict(self, request: predict_pb2.PredictRequest, context: Any) -> predict_pb2.PredictResponse:
        """Probabilities of the most likely classes for each picture."""
        return await self._answer(request, deadline_of(context))

    async def PredictStream(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[predict_pb2.PredictStreamResponse]:
        """Answers as they are done."""

        async def answer(request: predict_pb2.PredictStreamRequest) -> predict_pb2.PredictStreamResponse:
            return await self._answer_in_stream(request, context)

        async with aclosing(as_done(request_iterator, answer, STREAM_LIMIT)) as answers:  # type: ignore[type-var]
            async for response in answers:
                yield response

    async def _answer_in_stream(
        self, request: predict_pb2.PredictStreamRequest, context: Any
    ) -> predict_pb2.PredictStreamResponse:
        try:
            if not request.timeout_s >= 0:
                raise InvalidArgumentError.field("timeout_s", request.timeout_s, "≥ 0")
            deadline = deadline_of(context, request.timeout_s or math.inf)
            response = await self._answer(request.request, deadline)
        except Exception as error:
            told = error.under("request") if isinstance(error, PyserveError) else error
            status = self._statuses.tell(told, "PredictStream", uuid.uuid4().hex)
            return predict_pb2.PredictStreamResponse(id=request.id, error=status)
        return predict_pb2.PredictStreamResponse(id=request.id, response=response)

    async def _answer(self, request: predict_pb2.PredictRequest, deadline: float) -> predict_pb2.PredictResponse:
        name = validate.model_name(request.model, "model")
        top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
        if top_k < 1:
            raise InvalidArgumentError.field("top_k", top_k, "≥ 1")
        priority = validate.priority(request.priority) if request.HasField("priority") else DEFAULT_PRIORITY
        pictures, field = self._pictures(request)
        terms = Terms(request.tta, priority, deadline, field)
        model = await self._prediction.model(name)
        probabilities = await self._prediction.answer(model, pictures, terms)
        if probabilities.size > MANY_PROBABILITIES:
            return await self._pools.quick.run(_response, model, probabilities, top_k)
        return _response(model, probabilities, top_k)

    def _pictures(self, request: predict_pb2.PredictRequest) -> tuple[Pictures, str]:
        """The pictures of a request, checked as far as that needs no model, and what errors call them."""
        if request.WhichOneof("input") == "tensor":
            return self._array(request.tensor), "tensor"
        images = list(request.images.data)
        if not images:
            raise InvalidArgumentError.field("images", "no picture", "at least one, or a tensor")
        self._prediction.check_count(len(images), "images.data")
        return images, "images.data"

    def _array(self, tensor: predict_pb2.Tensor) -> npt.NDArray[Any]:
        shape = tuple(tensor.shape)
        if len(shape) != 4 or min(shape) < 1 or 3 not in (shape[1], shape[3]):
            raise InvalidArgumentError.field("tensor.shape", list(shape), "[N, 3, H, W] or [N, H, W, 3], each ≥ 1")
        self._prediction.check_count(shape[0], "tensor.shape")
        if tensor.dtype not in _DTYPES:
            raise InvalidArgumentError.field("tensor.dtype", tensor.dtype, f"one of {', '.join(_DTYPES)}")
        dtype = _DTYPES[tensor.dtype]
        expected = math.prod(shape) * dtype.itemsize
        if len(tensor.data) != expected:
            raise InvalidArgumentError.field(
                "tensor.data", f"{len(tensor.data)} bytes", f"{expected} bytes for {list(shape)} of {tensor.dtype}"
            )
        return np.frombuffer(tensor.data, dtype).reshape(shape)


def _response(model: Predictor, probabilities: Probabilities, top_k: int) -> predict_pb2.PredictResponse:
    rows = model.top(probabilities, top_k)
    return predict_pb2.PredictResponse(
        model=model.name,
        predictions=[
            predict_pb2.Prediction(
                scores=[
                    predict_pb2.ClassScore(label=s.label, index=s.index, probability=s.probability) for s in row
                ]
            )
            for row in rows
        ],
    )
