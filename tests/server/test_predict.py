"""Predictions over gRPC."""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from pyserve.v1 import jobs_pb2, predict_pb2
from tests.server.support import CLASSES, SIZE, Stubs, failure, png


def request(count: int = 6, **fields: Any) -> predict_pb2.PredictRequest:
    """Pictures of the classes in turn."""
    images = predict_pb2.EncodedImages(data=[png(i % 3, 700 + i) for i in range(count)])
    return predict_pb2.PredictRequest(model="models/colours", images=images, **fields)


def array(message: predict_pb2.PredictRequest) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pictures of a request as [N, H, W, 3]."""
    import io

    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in message.images.data])


def probabilities(answer: predict_pb2.PredictResponse) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[N, classes] in the order of the labels."""
    rows = np.zeros((len(answer.predictions), len(CLASSES)))
    for row, prediction in zip(rows, answer.predictions, strict=True):
        for score in prediction.scores:
            row[score.index] = score.probability
    return rows


def test_most_likely_first(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    answer = stubs.predict.Predict(request(), timeout=20)
    assert answer.model == trained.train_result.model
    for i, prediction in enumerate(answer.predictions):
        scores = [s.probability for s in prediction.scores]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        assert [CLASSES[s.index] for s in prediction.scores] == [s.label for s in prediction.scores]
        assert prediction.scores[0].label == CLASSES[i % 3]


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (2, 2), (1000, len(CLASSES))])
def test_top_k(stubs: Stubs, trained: jobs_pb2.Job, top_k: int, expected: int) -> None:
    answer = stubs.predict.Predict(request(top_k=top_k), timeout=20)
    assert {len(p.scores) for p in answer.predictions} == {expected}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_tensors_are_answered_like_the_pictures(
    stubs: Stubs, trained: jobs_pb2.Job, dtype: str, layout: str
) -> None:
    encoded = request()
    pixels = array(encoded)
    values: Any = pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    values = values if dtype == "uint8" else (values / 255).astype("<f4")
    tensor = predict_pb2.Tensor(shape=values.shape, dtype=dtype, data=values.tobytes())
    answer = stubs.predict.Predict(predict_pb2.PredictRequest(model="models/colours", tensor=tensor), timeout=20)
    expected = probabilities(stubs.predict.Predict(encoded, timeout=20))
    assert np.abs(probabilities(answer) - expected).max() < 1e-4
    assert pixels.shape[1:] == (SIZE, SIZE, 3)


def test_test_time_augmentation_averages_views(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    plain = probabilities(stubs.predict.Predict(request(), timeout=20))
    averaged = probabilities(stubs.predict.Predict(request(tta=True), timeout=20))
    assert averaged.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(averaged - plain).max() > 1e-6
    assert (averaged.argmax(axis=1) == plain.argmax(axis=1)).all()


def test_a_deadline_that_cannot_be_met(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as info:
        stubs.predict.Predict(request(64, tta=True), timeout=1e-3)
    assert info.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 5
    assert len(stubs.predict.Predict(request(), timeout=20).predictions) == 6


def test_bad_pictures_are_named_by_their_index(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    bad = request(40)
    bad.images.data[3] = b"no picture"
    bad.images.data[37] = b""
    _, _, violations, _ = failure(lambda: stubs.predict.Predict(bad, timeout=20))
    assert "images.data[3]" in violations
