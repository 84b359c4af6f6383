"""Predictions over gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from pyserve.client import Client
from pyserve.errors import InvalidArgumentError, NotFoundError
from pyserve.v1 import jobs_pb2, predict_pb2
from tests.client.fake import Driven
from tests.server.support import CLASSES, SIZE, TRUNCATED, Stubs, failure, png


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


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, stubs: Stubs, trained: jobs_pb2.Job) -> Iterator[Any]:
    made = (Client if request.param == "blocking" else Driven)(stubs.address)
    yield made
    made.close()


def test_a_stream_of_pictures(client: Any, stubs: Stubs) -> None:
    pictures = [TRUNCATED if i % 10 == 4 else png(i % 3, 700 + i) for i in range(150)]
    answers = {answer.index: answer for answer in client.predict_stream("models/colours", pictures, top_k=1)}
    assert sorted(answers) == list(range(150))
    for index, answer in answers.items():
        if index % 10 == 4:
            assert isinstance(answer.error, InvalidArgumentError)
            assert [v.field for v in answer.error.fields] == ["request.images.data[0]"]
            assert answer.prediction is None
        else:
            assert answer.error is None
            assert answer.model == "models/colours/versions/1"
            assert answer.prediction.scores[0].label == CLASSES[index % 3]
    assert list(client.predict_stream("models/colours", [])) == []
    wrong = list(client.predict_stream("models/nobody", pictures[:2]))
    assert [type(answer.error) for answer in wrong] == [NotFoundError] * 2


def test_a_stream_may_be_left_early(client: Any) -> None:
    stream = client.predict_stream("models/colours", (png(i % 3, i) for i in range(1_000_000)))
    seen = [next(stream).index for _ in range(5)]
    stream.close()
    assert len(set(seen)) == 5
    assert client.predict("models/colours", png(2, 5)).predictions[0].scores[0].label == CLASSES[2]


def test_requests_of_a_stream_have_timeouts_of_their_own(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    images = predict_pb2.EncodedImages(data=[png(0, 1)])
    predict = predict_pb2.PredictRequest(model="models/colours", images=images)
    requests = [
        predict_pb2.PredictStreamRequest(id="late", request=predict, timeout_s=1e-9),
        predict_pb2.PredictStreamRequest(id="wrong", request=predict, timeout_s=-1),
        predict_pb2.PredictStreamRequest(id="empty"),
        predict_pb2.PredictStreamRequest(id="fine", request=predict, timeout_s=20),
    ]
    answers = {a.id: a for a in stubs.predict.PredictStream(iter(requests), timeout=30)}
    codes = {name: answer.error.code for name, answer in answers.items()}
    assert codes == {
        "late": grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        "wrong": grpc.StatusCode.INVALID_ARGUMENT.value[0],
        "empty": grpc.StatusCode.INVALID_ARGUMENT.value[0],
        "fine": 0,
    }
    assert "request.model" in answers["empty"].error.message


@pytest.mark.parametrize("priority", [0, 4, -1])
def test_bad_priorities(stubs: Stubs, trained: jobs_pb2.Job, priority: int) -> None:
    code, _, violations, _ = failure(lambda: stubs.predict.Predict(request(priority=priority), timeout=20))
    assert (code, list(violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["priority"])
