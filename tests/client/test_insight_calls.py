"""The calls that look at models, on both clients: what they send, and arrays that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyserve.client import as_array
from pyserve.errors import DataLossError, InvalidArgumentError
from pyserve.v1 import common_pb2, insight_pb2
from tests.client.fake import FakeServer
from tests.client.fake_insight import ANSWERS, array

CALLS: dict[str, Any] = {
    "TopLosses": lambda c: c.top_losses("models/m", order="most_uncertain", count=3, label="a", predicted="b"),
    "ConfusionMatrix": lambda c: c.confusion_matrix("models/m", part="train"),
    "CompareModels": lambda c: c.compare_models("models/a", "models/b", dataset="datasets/d"),
    "Calibration": lambda c: c.calibration("models/m", bins=5, binning="equal_mass"),
    "Calibrate": lambda c: c.calibrate("models/m"),
    "LabelIssues": lambda c: c.label_issues("models/m", count=7),
    "Duplicates": lambda c: c.duplicates("models/m", part="valid", least_correlation=0.5),
    "Layers": lambda c: c.layers("models/m"),
    "Filters": lambda c: c.filters("models/m"),
    "FeatureMaps": lambda c: c.feature_maps("models/m", b"picture", layer="stem", channels=[2, 0]),
    "TopPatches": lambda c: c.top_patches("models/m", "stem", channel_count=3, count=4, rule="guided"),
    "Evolution": lambda c: c.evolution("jobs/j", "stem", channels=[1]),
    "Explain": lambda c: c.explain("models/m", path="a/1.png", dataset="datasets/d", method="occlusion"),
    "ApplyKernel": lambda c: c.apply_kernel(b"picture", "blur"),
    "Approximate": lambda c: c.approximate("sine", steps=[2, 4], depths=[1]),
    "Report": lambda c: c.report("models/m"),
    "Kernels": lambda c: c.kernels(),
}


def test_every_call_of_the_service_has_a_method() -> None:
    service = insight_pb2.DESCRIPTOR.services_by_name["Insight"]
    assert [method.name for method in service.methods] == list(CALLS)
    assert set(ANSWERS) == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_calls_are_answered(client: Any, fake: FakeServer, call: str) -> None:
    assert CALLS[call](client) == ANSWERS[call]
    assert type(fake.requests[0]).__name__ == f"{call}Request"


def test_what_is_sent(client: Any, fake: FakeServer) -> None:
    for call in ("TopLosses", "LabelIssues", "Duplicates", "FeatureMaps", "Explain", "TopPatches"):
        CALLS[call](client)
    losses, issues, duplicates, maps, explained, patches = fake.requests
    assert (losses.order, losses.label, losses.predicted) == (insight_pb2.MOST_UNCERTAIN, "a", "b")
    assert losses.part == common_pb2.PART_VALID
    assert issues.part == common_pb2.PART_UNSPECIFIED  # both parts
    assert not duplicates.HasField("count")
    assert duplicates.least_correlation == 0.5
    assert (maps.picture.image, list(maps.channels)) == (b"picture", [2, 0])
    assert (explained.picture.path, explained.picture.dataset) == ("a/1.png", "datasets/d")
    assert explained.method == insight_pb2.OCCLUSION
    assert not explained.HasField("channel")
    assert (patches.rule, patches.count) == ("guided", 4)


def test_kernels_of_every_kind(client: Any, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"file")
    client.apply_kernel(path, [[1, 2], [3, 4]])
    client.apply_kernel(b"x", model="models/m", channel=5)
    own, learned = fake.requests
    assert (own.image, list(own.matrix.values)) == (b"file", [1, 2, 3, 4])
    assert (learned.learned.model, learned.learned.channel) == ("models/m", 5)
    with pytest.raises(InvalidArgumentError, match=r"kernel: got \[\[1, 2\], \[3\]\], expected as many rows"):
        client.apply_kernel(b"x", [[1, 2], [3]])


def test_a_picture_is_sent_or_named(client: Any, fake: FakeServer) -> None:
    with pytest.raises(
        InvalidArgumentError, match="picture: got 'neither', expected either an image, or the path"
    ):
        client.explain("models/m")
    with pytest.raises(InvalidArgumentError, match="picture: got 'both'"):
        client.feature_maps("models/m", b"x", path="a/1.png")
    with pytest.raises(InvalidArgumentError, match=r"image: got 'no-such\.png', expected a readable picture file"):
        client.explain("models/m", "no-such.png")
    with pytest.raises(InvalidArgumentError, match="method: got 'why', expected one of grad_cam, occlusion"):
        client.explain("models/m", b"x", method="why")
    with pytest.raises(InvalidArgumentError, match="part: got 'test', expected one of train, valid"):
        client.label_issues("models/m", part="test")
    assert not fake.requests


def test_relabelling(client: Any, fake: FakeServer) -> None:
    dataset = client.relabel_dataset("datasets/d", {"a/1.png": "b"}, removed=["a/2.png"])
    assert dataset.name == "datasets/x-v2"
    request = fake.requests[0]
    assert [(c.path, c.label) for c in request.corrections] == [("a/1.png", "b")]
    assert list(request.removed) == ["a/2.png"]
    assert len(request.request_id) == 36


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_arrays_come_back(dtype: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    message = common_pb2.Array(shape=[3, 4], dtype=dtype, data=values.tobytes())
    assert np.array_equal(as_array(message), values)
    message.shape[0] = 4
    with pytest.raises(DataLossError, match=r"an array of shape \[4, 4\] came with 12 numbers"):
        as_array(message)
    assert as_array(array([1, 2])).tolist() == [1, 2]
