"""The Insight service of the fake server: canned answers, each with a figure."""

from __future__ import annotations

# gRPC names the methods
from collections.abc import Callable
from typing import Any

import numpy as np

from pyserve.v1 import common_pb2, insight_pb2, insight_pb2_grpc, models_pb2

FIGURES = [
    common_pb2.Figure(name="drawn.png", media_type="image/png", data=b"png"),
    common_pb2.Figure(name="drawn.svg", media_type="image/svg+xml", data=b"svg"),
]


def array(values: Any) -> common_pb2.Array:
    made = np.asarray(values, np.float32)
    return common_pb2.Array(shape=made.shape, dtype="float32", data=made.tobytes())


PATCH = insight_pb2.Patch(path="a/1.png", label="a", activation=2.5, row=1, column=2)
LAYER = insight_pb2.Layer(name="stem", kind="Conv2d", channels=4, height=8, width=6, field_height=3, field_width=5)
PICTURES = [
    insight_pb2.DatasetPicture(path=f"{name}/1.png", label=name, part=common_pb2.PART_TRAIN) for name in "ab"
]
ANSWERS: dict[str, Any] = {
    "TopLosses": insight_pb2.TopLossesResponse(
        items=[insight_pb2.ImageLoss(path="a/1.png", label="a", predicted="b", probability=0.875)], figures=FIGURES
    ),
    "ConfusionMatrix": insight_pb2.ConfusionMatrixResponse(
        labels=["a", "b"],
        counts=[41, 2, 7, 50],
        accuracy=0.91,
        most_confused=[insight_pb2.ConfusedPair(label="b", predicted="a", count=7)],
        figures=FIGURES,
    ),
    "CompareModels": insight_pb2.CompareModelsResponse(
        labels=["a", "b"],
        before_accuracy=0.8,
        after_accuracy=0.9,
        fixed=3,
        broken=1,
        p_value=0.625,
        changes=[insight_pb2.ChangedPicture(path="a/1.png", label="a", before="b", after="a")],
        figures=FIGURES,
    ),
    "Calibration": insight_pb2.CalibrationResponse(
        before=insight_pb2.Reliability(
            bins=[insight_pb2.ReliabilityBin(low=0.5, high=1, count=9, confidence=0.9, accuracy=0.7)],
            expected_calibration_error=0.2,
        ),
        temperature=1.5,
        model_temperature=2,
        figures=FIGURES,
    ),
    "Calibrate": models_pb2.Model(name="models/m/versions/2", temperature=3),
    "LabelIssues": insight_pb2.LabelIssuesResponse(
        items=[
            insight_pb2.LabelIssue(
                path="a/1.png",
                part=common_pb2.PART_VALID,
                label="a",
                suggested="b",
                suggested_share=1,
                confident=True,
            )
        ],
        suspected=5,
        confident=1,
        figures=FIGURES,
    ),
    "Duplicates": insight_pb2.DuplicatesResponse(
        pairs=[insight_pb2.DuplicatePair(first=PICTURES[0], second=PICTURES[1], correlation=0.95)],
        found=4,
        figures=FIGURES,
    ),
    "Layers": insight_pb2.LayersResponse(layers=[LAYER], last_layer="stem", rule="guided"),
    "Filters": insight_pb2.FiltersResponse(layer="stem", weights=array(np.zeros((4, 3, 3, 3))), figures=FIGURES),
    "FeatureMaps": insight_pb2.FeatureMapsResponse(layer=LAYER, channels=[3, 1], figures=FIGURES),
    "TopPatches": insight_pb2.TopPatchesResponse(
        layer=LAYER, channels=[insight_pb2.ChannelPatches(channel=3, patches=[PATCH])], figures=FIGURES
    ),
    "Evolution": insight_pb2.EvolutionResponse(
        layer=LAYER,
        epochs=[1, 5],
        channels=[
            insight_pb2.ChannelEvolution(
                channel=3, patches=[insight_pb2.EpochPatch(epoch=1), insight_pb2.EpochPatch(epoch=5, patch=PATCH)]
            )
        ],
        figures=FIGURES,
    ),
    "Explain": insight_pb2.ExplainResponse(
        label="a",
        probability=0.75,
        layer="stem",
        channel=2,
        maps=[insight_pb2.NamedArray(name="x")],
        figures=FIGURES,
    ),
    "ApplyKernel": insight_pb2.ApplyKernelResponse(
        response=array(np.zeros((4, 5))),
        white=1,
        filtered=common_pb2.Figure(name="filtered.png", data=b"filtered"),
        figures=FIGURES,
    ),
    "Approximate": insight_pb2.ApproximateResponse(
        staircases=[insight_pb2.Staircase(places=[0.5], error=0.25)],
        networks=[insight_pb2.NetworkFit(depth=2, width=6, parameters=61, error=0.004)],
        figures=FIGURES,
    ),
    "Report": insight_pb2.ReportResponse(model="models/m/versions/1", html=b"<!DOCTYPE html>"),
    "Kernels": insight_pb2.KernelsResponse(isa_found="avx2", isa_used="scalar"),
}


class InsightOf(insight_pb2_grpc.InsightServicer):
    """Notes each request and gives its canned answer."""

    def __init__(self, note: Callable[[Any, Any], None]) -> None:
        self._note = note

    def __getattribute__(self, name: str) -> Any:
        if name not in ANSWERS:
            return super().__getattribute__(name)
        note = super().__getattribute__("_note")

        def answer(request: Any, context: Any) -> Any:
            note(request, context)
            return ANSWERS[name]

        return answer
