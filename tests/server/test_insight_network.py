"""Looking into networks over gRPC: layers, filters, maps, patches, explanations, kernels, reports."""

from __future__ import annotations

import io
import time
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pyserve.insight.explain import EXPLANATIONS
from pyserve.insight.predictions import ORDERS as REGISTERED_ORDERS
from pyserve.server.services.insight.network import METHODS
from pyserve.server.services.insight.predictions import ORDERS
from pyserve.v1 import common_pb2, insight_pb2, jobs_pb2
from tests.server.support import SIZE, Stubs, failure, png
from tests.server.test_insight import check_figures

MODEL = "models/colours"


def array(message: common_pb2.Array) -> npt.NDArray[Any]:
    return np.frombuffer(message.data, message.dtype).reshape(tuple(message.shape))


def picture(label: int = 0) -> insight_pb2.Picture:
    return insight_pb2.Picture(image=png(label, 77))


def test_the_calls_know_every_registered_name() -> None:
    assert set(METHODS.values()) == set(EXPLANATIONS)
    assert len(METHODS) == len(insight_pb2.ExplainMethod.keys())
    assert set(ORDERS.values()) == set(REGISTERED_ORDERS)
    assert len(ORDERS) == len(insight_pb2.LossOrder.keys())


def test_layers(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    answer = stubs.insight.Layers(insight_pb2.LayersRequest(model=MODEL), timeout=60)
    by_name = {layer.name: layer for layer in answer.layers}
    assert (answer.first_convolution, answer.last_layer, answer.rule) == ("stem.0", "stage3", "deconvnet")
    stem, last = by_name["stem.0"], by_name["stage3"]
    assert (stem.kind, stem.channels, stem.height, stem.width) == ("Conv2d", 32, SIZE, SIZE)
    assert (stem.field_height, stem.field_width) == (3, 3)
    assert (last.channels, last.height, last.field_height) == (192, 2, SIZE)


def test_filters(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    answer = stubs.insight.Filters(insight_pb2.FiltersRequest(model=MODEL), timeout=60)
    assert answer.layer == "stem.0"
    weights = array(answer.weights)
    assert weights.shape == (32, 3, 3, 3)
    assert weights.std() > 0.01
    check_figures(answer.figures, "filters")


def test_feature_maps_of_a_sent_picture_and_of_one_of_the_dataset(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    request = insight_pb2.FeatureMapsRequest(model=MODEL, picture=picture(), layer="stage1", channels=[3, 0])
    answer = stubs.insight.FeatureMaps(request, timeout=60)
    assert list(answer.channels) == [3, 0]
    assert (answer.layer.name, answer.layer.channels) == ("stage1", 48)
    maps = array(answer.maps)
    assert maps.shape == (2, 8, 8)
    assert maps.min() >= 0
    with Image.open(io.BytesIO(png(0, 77))) as image:
        assert np.array_equal(array(answer.picture), np.asarray(image))
    check_figures(answer.figures, "feature_maps")
    request = insight_pb2.FeatureMapsRequest(model=MODEL, picture=insight_pb2.Picture(path="red/3.png"))
    answer = stubs.insight.FeatureMaps(request, timeout=60)
    assert answer.layer.name == "stem.0"
    assert len(answer.channels) == 16
    with Image.open(io.BytesIO(png(2, 3))) as image:
        assert np.array_equal(array(answer.picture), np.asarray(image))


def test_top_patches(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    request = insight_pb2.TopPatchesRequest(model=MODEL, layer="stem", channel_count=3, count=2)
    answer = stubs.insight.TopPatches(request, timeout=120)
    assert answer.rule == "deconvnet"
    assert len(answer.channels) == 3
    for channel in answer.channels:
        activations = [p.activation for p in channel.patches]
        assert len(activations) == 2
        assert activations == sorted(activations, reverse=True)
        for patch in channel.patches:
            assert array(patch.pixels).shape == (3, 3, 3)
            assert array(patch.projection).shape == (3, 3, 3)
            assert np.abs(array(patch.projection)).max() > 0
            assert patch.path.split("/")[0] == patch.label
    check_figures(answer.figures, "top_patches")


@pytest.mark.parametrize("method", ["GRAD_CAM", "OCCLUSION", "DECONVNET"])
def test_explain(stubs: Stubs, trained: jobs_pb2.Job, method: str) -> None:
    request = insight_pb2.ExplainRequest(
        model=MODEL,
        picture=picture(1),
        method=insight_pb2.ExplainMethod.Value(method),
        label="green",
        square_size=6,
        square_stride=4,
    )
    answer = stubs.insight.Explain(request, timeout=60)
    assert answer.label == "green"
    assert (len(answer.scores), answer.layer) == (3, "stage3")
    assert answer.probability == pytest.approx(next(s.probability for s in answer.scores if s.label == "green"))
    maps = {m.name: array(m.values) for m in answer.maps}
    shapes = {name: values.shape for name, values in maps.items()}
    assert (
        shapes
        == {
            "GRAD_CAM": {"grad_cam": (2, 2)},
            "OCCLUSION": {"probability": (4, 4), "activation": (4, 4), "label": (4, 4)},
            "DECONVNET": {"projection": (3, SIZE, SIZE)},
        }[method]
    )
    assert answer.HasField("channel") == (method != "GRAD_CAM")
    check_figures(answer.figures, method.lower())


@pytest.mark.parametrize(
    ("mode", "width", "height"), [("RGB", 1, 1), ("L", 300, 20), ("RGBA", 9, 200), ("P", 64, 64)]
)
def test_pictures_of_other_sizes_and_forms(
    stubs: Stubs, trained: jobs_pb2.Job, mode: str, width: int, height: int
) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 1).save(buffer, "PNG")
    sent = insight_pb2.Picture(image=buffer.getvalue())
    for method in (insight_pb2.GRAD_CAM, insight_pb2.OCCLUSION, insight_pb2.DECONVNET):
        answer = stubs.insight.Explain(
            insight_pb2.ExplainRequest(model=MODEL, picture=sent, method=method), timeout=60
        )
        assert array(answer.picture).shape == (SIZE, SIZE, 3)
        assert all(np.isfinite(array(m.values)).all() for m in answer.maps)


def test_named_own_and_learned_kernels(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    image = png(2, 5)
    grey = np.asarray(Image.open(io.BytesIO(image)), np.float64) @ (0.299, 0.587, 0.114) / 255
    named = stubs.insight.ApplyKernel(insight_pb2.ApplyKernelRequest(image=image, name="identity"), timeout=60)
    assert array(named.response) == pytest.approx(grey, abs=1e-5)
    shown = np.asarray(Image.open(io.BytesIO(named.filtered.data)))
    assert shown == pytest.approx(255 * grey, abs=1)
    check_figures(named.figures, "kernel")
    matrix = insight_pb2.KernelMatrix(values=[0, 0, 0, 2])
    own = stubs.insight.ApplyKernel(insight_pb2.ApplyKernelRequest(image=image, matrix=matrix), timeout=60)
    assert array(own.response)[:-1, :-1] == pytest.approx(2 * grey[1:, 1:], abs=1e-5)
    learned = insight_pb2.LearnedKernel(model=MODEL, channel=3)
    found = stubs.insight.ApplyKernel(insight_pb2.ApplyKernelRequest(image=image, learned=learned), timeout=60)
    filters = stubs.insight.Filters(insight_pb2.FiltersRequest(model=MODEL), timeout=60)
    assert np.array_equal(array(found.kernel), array(filters.weights)[3])
    assert array(found.response).shape == (SIZE, SIZE)


def test_approximate(stubs: Stubs) -> None:
    request = insight_pb2.ApproximateRequest(target="sine", steps=[2, 8], tolerance=0.05, depths=[1, 2])
    answer = stubs.insight.Approximate(request, timeout=120)
    assert [len(s.places) for s in answer.staircases] == [2, 8]
    target = array(answer.target)
    for staircase in answer.staircases:
        assert staircase.error == pytest.approx(np.sqrt(np.mean((array(staircase.output) - target) ** 2)))
    assert {n.depth for n in answer.networks} == {1, 2}
    names = sorted(f.name for f in answer.figures)
    assert names == ["stairs.png", "stairs.svg", "width_depth.png", "width_depth.svg"]


def test_evolution_of_a_training_with_snapshots(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    job = stubs.wait(stubs.train(epochs=5, model_id="growing", snapshots=True))
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    request = insight_pb2.EvolutionRequest(job=job.name, layer="stage1", channel_count=2)
    answer = stubs.insight.Evolution(request, timeout=120)
    assert list(answer.epochs) == [1, 2, 5]
    assert len(answer.channels) == 2
    for channel in answer.channels:
        assert [p.epoch for p in channel.patches] == [1, 2, 5]
        assert channel.patches[-1].HasField("patch")
        size = answer.layer.field_height
        assert array(channel.patches[-1].patch.projection).shape == (3, size, size)
    check_figures(answer.figures, "evolution")
    last = insight_pb2.TopPatchesRequest(
        model=f"{job.train_result.model}", layer="stage1", channels=[answer.channels[0].channel], count=1
    )
    if job.train_result.best_epoch == 5:
        patch = stubs.insight.TopPatches(last, timeout=60).channels[0].patches[0]
        assert patch.activation == pytest.approx(answer.channels[0].patches[-1].patch.activation, rel=1e-4)


def test_a_report_of_a_model_and_of_its_job(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    for name in (MODEL, trained.name):
        answer = stubs.insight.Report(insight_pb2.ReportRequest(name=name), timeout=240)
        page = answer.html.decode()
        assert answer.model == trained.train_result.model
        assert page.startswith("<!DOCTYPE html>")
        assert page.count("<img ") >= 10
        for words in (
            "Confusion matrix",
            "Most uncertain",
            "Calibration",
            "Class by class",
            "Training",
            "First-layer filters",
            "What the first layer sees",
            "Why layers help",
            "What runs underneath",
        ):
            assert f">{words}</h2>" in page
        assert 'class="problem"' not in page
        assert "http://" not in page.replace("http://www.w3.org", "")
        assert str(trained.name) in page


def test_a_report_of_a_training_that_found_its_rates_and_kept_snapshots(stubs: Stubs) -> None:
    spec = {"epochs": 2, "model_id": "told", "learning_rate": None, "batch_size": 4}
    job = stubs.wait(stubs.train(**spec, lr_from="self", snapshots=True))
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    link = stubs.watch(job)[-1].state.report
    page = stubs.insight.Report(insight_pb2.ReportRequest(name=link), timeout=240).html.decode()
    assert ">How features came about</h2>" in page
    assert "after epochs 1, 2." in page
    finder = page.split(">Learning-rate finder</h2>")[1].split("</section>")[0]
    assert finder.count("<img ") == 1
    assert "kernel calls" in page


BAD: dict[str, tuple[str, Any, str, str]] = {
    "no such layer": (
        "FeatureMaps",
        insight_pb2.FeatureMapsRequest(model=MODEL, picture=picture(), layer="conv9"),
        "INVALID_ARGUMENT",
        "layer: got 'conv9', expected one of stem.0, stem.1,",
    ),
    "no layer": ("TopPatches", insight_pb2.TopPatchesRequest(model=MODEL), "INVALID_ARGUMENT", "layer: got ''"),
    "no such channel": (
        "TopPatches",
        insight_pb2.TopPatchesRequest(model=MODEL, layer="stem", channels=[32]),
        "INVALID_ARGUMENT",
        "channels: got 32, expected 0 to 31 of stem",
    ),
    "no such rule": (
        "TopPatches",
        insight_pb2.TopPatchesRequest(model=MODEL, layer="stem", rule="odd"),
        "INVALID_ARGUMENT",
        "rule: got 'odd', expected one of deconvnet, guided",
    ),
    "no such class": (
        "Explain",
        insight_pb2.ExplainRequest(model=MODEL, picture=picture(), label="pink"),
        "INVALID_ARGUMENT",
        "label: got 'pink', expected one of 'blue', 'green', 'red'",
    ),
    "no such method": (
        "Explain",
        insight_pb2.ExplainRequest(model=MODEL, picture=picture(), method=9),  # type: ignore[arg-type]
        "INVALID_ARGUMENT",
        "method: got 9, expected one of GRAD_CAM, OCCLUSION, DECONVNET",
    ),
    "too large a square": (
        "Explain",
        insight_pb2.ExplainRequest(model=MODEL, picture=picture(), method=insight_pb2.OCCLUSION, square_size=99),
        "INVALID_ARGUMENT",
        "size: got 99, expected 1 to 16",
    ),
    "no picture": ("Explain", insight_pb2.ExplainRequest(model=MODEL), "INVALID_ARGUMENT", "picture: got 'none'"),
    "no picture at all": (
        "Explain",
        insight_pb2.ExplainRequest(model=MODEL, picture=insight_pb2.Picture(image=b"nothing")),
        "INVALID_ARGUMENT",
        "picture.image: is not a picture",
    ),
    "not in the dataset": (
        "Explain",
        insight_pb2.ExplainRequest(model=MODEL, picture=insight_pb2.Picture(path="../../secret.png")),
        "INVALID_ARGUMENT",
        "picture.path: got '../../secret.png', expected a picture of datasets/colours, such as blue/",
    ),
    "no such model": ("Layers", insight_pb2.LayersRequest(model="models/none"), "NOT_FOUND", "models/none"),
    "no kernel": (
        "ApplyKernel",
        insight_pb2.ApplyKernelRequest(image=png(0, 1)),
        "INVALID_ARGUMENT",
        "kernel: got",
    ),
    "odd kernel": (
        "ApplyKernel",
        insight_pb2.ApplyKernelRequest(image=png(0, 1), name="odd"),
        "INVALID_ARGUMENT",
        "name: got 'odd', expected one of identity",
    ),
    "no square": (
        "ApplyKernel",
        insight_pb2.ApplyKernelRequest(image=png(0, 1), matrix=insight_pb2.KernelMatrix(values=[1, 2, 3])),
        "INVALID_ARGUMENT",
        "matrix.values: got '3 numbers', expected 4, 9 or 25",
    ),
    "too large a kernel": (
        "ApplyKernel",
        insight_pb2.ApplyKernelRequest(image=png(0, 1), matrix=insight_pb2.KernelMatrix(values=[1] * 16)),
        "INVALID_ARGUMENT",
        "matrix: got '4 rows of 4 numbers'",
    ),
    "no such target": (
        "Approximate",
        insight_pb2.ApproximateRequest(target="odd"),
        "INVALID_ARGUMENT",
        "target: got 'odd', expected one of waves, sine, sawtooth, jump",
    ),
    "no such job": (
        "Evolution",
        insight_pb2.EvolutionRequest(job="jobs/00000000-0000-0000-0000-000000000000", layer="stem"),
        "NOT_FOUND",
        "jobs/00000000",
    ),
    "no job": (
        "Evolution",
        insight_pb2.EvolutionRequest(job="x", layer="stem"),
        "INVALID_ARGUMENT",
        "job: got 'x'",
    ),
    "no name": ("Report", insight_pb2.ReportRequest(name="pets"), "INVALID_ARGUMENT", "name: got 'pets'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_questions(stubs: Stubs, trained: jobs_pb2.Job, kind: str) -> None:
    call, request, code, words = BAD[kind]
    found, message, _, _ = failure(lambda: getattr(stubs.insight, call)(request, timeout=60))
    assert (found.name, message.startswith(words) or words in message) == (code, True), message


def test_a_training_without_snapshots(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    request = insight_pb2.EvolutionRequest(job=trained.name, layer="stem")
    code, message, _, _ = failure(lambda: stubs.insight.Evolution(request, timeout=60))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert message.endswith("has no snapshots: train with `snapshots`, and for an epoch at least")


def test_long_work_ends_with_its_deadline_and_holds_nobody_up(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    """More calls than the pool has threads, none of which could end in its time; the next one is answered."""
    slow = insight_pb2.ApproximateRequest(target="sawtooth", tolerance=0.0001, depths=[1, 2, 3, 4] * 2)
    calls = [stubs.insight.Approximate.future(slow, timeout=1.0) for _ in range(6)]
    begin = time.monotonic()
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 30
    layers = stubs.insight.Layers(insight_pb2.LayersRequest(model=MODEL), timeout=120)
    assert layers.layers
