"""Insight over gRPC: the numbers agree with what Predict says, and the pictures are pictures."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from PIL import Image

from pyserve.v1 import common_pb2, datasets_pb2, insight_pb2, jobs_pb2, predict_pb2
from tests.server.support import CLASSES, Stubs, failure, pictures, png, zipped

SMALLEST = 2.0**-126  # float32 has none smaller that is as exact


@pytest.fixture(scope="module")
def mixed(stubs: Stubs, trained: jobs_pb2.Job) -> str:
    """A dataset with some pictures under the wrong label."""
    files = pictures(10)
    files |= {f"red/stray{i}.png": png(0, 900 + i) for i in range(8)}
    return stubs.upload(zipped(files), "mixed").name


def check_figures(figures: Any, stem: str) -> None:
    png_figure, svg = sorted(figures, key=lambda f: f.media_type)
    assert (png_figure.name, svg.name) == (f"{stem}.png", f"{stem}.svg")
    assert min(Image.open(io.BytesIO(png_figure.data)).size) > 300
    assert svg.data.startswith(b"<?xml")


def test_confusion_matrix(stubs: Stubs, mixed: str) -> None:
    request = insight_pb2.ConfusionMatrixRequest(model="models/colours", dataset=mixed, part=common_pb2.PART_TRAIN)
    answer = stubs.insight.ConfusionMatrix(request, timeout=60)
    assert list(answer.labels) == list(CLASSES)
    dataset = stubs.datasets.Get(datasets_pb2.GetDatasetRequest(name=mixed), timeout=20)
    rows = [sum(answer.counts[3 * i : 3 * i + 3]) for i in range(3)]
    assert rows == [c.train_count for c in dataset.classes]
    assert answer.accuracy == pytest.approx(sum(answer.counts[4 * i] for i in range(3)) / sum(rows))
    assert answer.most_confused[0].label == "red"
    assert answer.most_confused[0].predicted == "blue"
    assert answer.most_confused[0].count == answer.counts[6] > 0
    check_figures(answer.figures, "confusion_matrix")


def test_top_losses(stubs: Stubs, mixed: str) -> None:
    request = insight_pb2.TopLossesRequest(
        model="models/colours",
        dataset=mixed,
        part=common_pb2.PART_TRAIN,
        order=insight_pb2.MOST_INCORRECT,
        count=4,
    )
    answer = stubs.insight.TopLosses(request, timeout=60)
    assert len(answer.items) == 4
    confidence = [item.probability for item in answer.items]
    assert confidence == sorted(confidence, reverse=True)
    for item in answer.items:
        assert (item.label, item.predicted) == ("red", "blue")
        assert item.path.startswith("red/stray")
        if item.label_probability > SMALLEST:
            assert item.loss == pytest.approx(-math.log(item.label_probability), rel=1e-3)
        else:
            assert item.loss > -math.log(SMALLEST)
    images = predict_pb2.EncodedImages(data=[png(0, 900 + int(answer.items[0].path[9:-4]))])
    said = stubs.predict.Predict(predict_pb2.PredictRequest(model="models/colours", images=images), timeout=20)
    assert said.predictions[0].scores[0].probability == pytest.approx(confidence[0], abs=1e-4)
    check_figures(answer.figures, "most_incorrect")


@pytest.mark.parametrize("order", ["MOST_CORRECT", "MOST_UNCERTAIN", "HIGHEST_LOSS"])
def test_other_orders(stubs: Stubs, trained: jobs_pb2.Job, order: str) -> None:
    request = insight_pb2.TopLossesRequest(model="models/colours", order=insight_pb2.LossOrder.Value(order))
    items = stubs.insight.TopLosses(request, timeout=60).items
    assert items
    if order == "MOST_CORRECT":
        assert all(item.label == item.predicted for item in items)
    if order == "HIGHEST_LOSS":
        assert [i.loss for i in items] == sorted((i.loss for i in items), reverse=True)


def test_a_dataset_of_other_classes(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    stubs.upload(zipped(pictures(6, ("cyan", "blue"))), "others")
    request = insight_pb2.ConfusionMatrixRequest(model="models/colours", dataset="datasets/others")
    _, message, _, _ = failure(lambda: stubs.insight.ConfusionMatrix(request, timeout=60))
    assert "does not know 'cyan'" in message


def test_kernels(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    stubs.insight.ConfusionMatrix(insight_pb2.ConfusionMatrixRequest(model="models/colours"), timeout=60)
    answer = stubs.insight.Kernels(insight_pb2.KernelsRequest(), timeout=20)
    assert answer.isa_used in ("scalar", "avx2", "avx512", "avx512_bf16")
    assert answer.build["torch_least"] == "2.10"
    forward = [v for v in answer.variants if v.op == "conv2d" and v.device == "cpu"]
    assert sum(v.calls for v in forward if v.available) > 0
    assert all(v.calls == 0 for v in answer.variants if not v.available)
