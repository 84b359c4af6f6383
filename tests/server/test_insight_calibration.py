"""Calibration over gRPC: numbers that follow from what Predict says, and a version that keeps the temperature."""

from __future__ import annotations

import io
import math
import uuid

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from pyserve.inference.bundle import load_bundle
from pyserve.v1 import common_pb2, insight_pb2, jobs_pb2, models_pb2, predict_pb2
from tests.server.conftest import ServerThread
from tests.server.support import Stubs, failure, pictures, png, zipped
from tests.server.test_insight import check_figures

MODEL = "models/unsure"


@pytest.fixture(scope="module")
def unsure(stubs: Stubs) -> jobs_pb2.Job:
    """A finished training whose model is these tests' own: they make versions of it."""
    job = stubs.wait(stubs.train(epochs=6, model_id=MODEL.removeprefix("models/")))
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    return job


@pytest.fixture(scope="module")
def noisy(stubs: Stubs, unsure: jobs_pb2.Job) -> str:
    """A dataset with some of its labels wrong: the model is far too sure there."""
    files = pictures(12) | {f"red/stray{i}.png": png(0, 300 + i) for i in range(8)}
    return stubs.upload(zipped(files), "noisy").name


def question(dataset: str, **fields: object) -> insight_pb2.CalibrationRequest:
    return insight_pb2.CalibrationRequest(
        model=f"{MODEL}/versions/1",
        dataset=dataset,
        part=common_pb2.PART_TRAIN,
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("binning", ["", "equal_width", "equal_mass"])
def test_bins_agree_with_what_the_model_says(stubs: Stubs, noisy: str, binning: str) -> None:
    answer = stubs.insight.Calibration(question(noisy, bins=5, binning=binning), timeout=60)
    request = insight_pb2.ConfusionMatrixRequest(model=MODEL, dataset=noisy, part=common_pb2.PART_TRAIN)
    matrix = stubs.insight.ConfusionMatrix(request, timeout=60)
    bins = answer.before.bins
    assert len(bins) == 5
    assert sum(b.count for b in bins) == sum(matrix.counts)
    assert sum(b.count * b.accuracy for b in bins) == pytest.approx(matrix.accuracy * sum(matrix.counts))
    assert answer.before.loss == pytest.approx(matrix.loss, rel=1e-4)
    gaps = [b.count * abs(b.accuracy - b.confidence) for b in bins]
    assert answer.before.expected_calibration_error == pytest.approx(sum(gaps) / sum(matrix.counts))
    assert answer.temperature > 1
    assert answer.after.loss < answer.before.loss
    assert answer.model_temperature == 1
    check_figures(answer.figures, "reliability")


def scores(stubs: Stubs, model: str) -> np.ndarray:
    images = predict_pb2.EncodedImages(data=[png(i % 3, 40 + i) for i in range(6)])
    answer = stubs.predict.Predict(predict_pb2.PredictRequest(model=model, images=images, top_k=3), timeout=60)
    return np.array([[s.probability for s in sorted(p.scores, key=lambda s: s.index)] for p in answer.predictions])


def test_a_calibrated_version_divides_its_logits(server: ServerThread, stubs: Stubs, noisy: str) -> None:
    request = insight_pb2.CalibrateRequest(
        request_id=str(uuid.uuid4()), model=MODEL, dataset=noisy, part=common_pb2.PART_TRAIN
    )
    old = stubs.models.Get(models_pb2.GetModelRequest(name=f"{MODEL}/versions/1"), timeout=20)
    before = scores(stubs, f"{MODEL}/versions/1")
    bundle = load_bundle(server.settings.data_dir / MODEL / "1")
    pixels = [np.asarray(Image.open(io.BytesIO(png(i % 3, 40 + i)))).transpose(2, 0, 1) for i in range(6)]
    with torch.inference_mode():
        logits = bundle.model(bundle.prepare(torch.from_numpy(np.stack(pixels)))).double().numpy()
    new = stubs.insight.Calibrate(request, timeout=120)
    try:
        fitted = stubs.insight.Calibration(question(noisy), timeout=60).temperature
        assert new.name == f"{MODEL}/versions/2"
        assert stubs.insight.Calibrate(request, timeout=60).name == new.name
        assert (old.temperature, new.temperature) == (1, pytest.approx(fitted, rel=1e-3))
        assert new.provenance["calibrated_from"] == old.name
        assert new.provenance["dataset"] == old.provenance["dataset"]
        assert new.metrics == old.metrics  # measured on another dataset
        expected = np.exp(logits / new.temperature)
        expected /= expected.sum(axis=1, keepdims=True)
        assert scores(stubs, new.name) == pytest.approx(expected, abs=1e-4)
        assert scores(stubs, old.name) == pytest.approx(before, abs=1e-6)
        again = question(noisy)
        again.model = new.name
        found = stubs.insight.Calibration(again, timeout=60)
        assert found.model_temperature == new.temperature
        assert found.temperature == pytest.approx(1, abs=0.05)
    finally:
        stubs.models.Delete(models_pb2.DeleteModelRequest(name=new.name), timeout=20)


def test_calibrating_on_the_models_own_validation_part_updates_its_metrics(
    stubs: Stubs, unsure: jobs_pb2.Job
) -> None:
    new = stubs.insight.Calibrate(insight_pb2.CalibrateRequest(model=MODEL), timeout=120)
    try:
        assert math.isfinite(new.metrics["expected_calibration_error"])
        assert new.metrics["accuracy"] == unsure.train_result.metrics["accuracy"]
    finally:
        stubs.models.Delete(models_pb2.DeleteModelRequest(name=new.name), timeout=20)


def test_bad_questions(stubs: Stubs, noisy: str) -> None:
    for fields, sentence in (
        ({"bins": 0}, "bins: got 0, expected 1 to 100"),
        ({"binning": "odd"}, "binning: got 'odd', expected one of equal_width, equal_mass"),
    ):
        code, message, _, _ = failure(
            lambda fields=fields: stubs.insight.Calibration(question(noisy, **fields), timeout=60)  # type: ignore[misc]
        )
        assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, sentence)
    request = insight_pb2.CalibrateRequest(model="models/none-such")
    code, _, _, _ = failure(lambda: stubs.insight.Calibrate(request, timeout=60))
    assert code == grpc.StatusCode.NOT_FOUND
