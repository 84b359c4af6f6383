"""Wrong labels over gRPC: planted ones are found, corrected, learnt from, and the two models compared."""

from __future__ import annotations

import io
import uuid
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from pyserve.v1 import common_pb2, datasets_pb2, insight_pb2, jobs_pb2
from tests.server.support import CLASSES, Stubs, failure, pictures, png, zipped
from tests.server.test_insight import check_figures

STRAYS = [f"red/stray{i}.png" for i in range(6)]


@pytest.fixture(scope="module")
def strayed(stubs: Stubs, trained: jobs_pb2.Job) -> str:
    """A dataset in which six blue pictures are called red."""
    files = pictures(14) | {path: png(0, 700 + i) for i, path in enumerate(STRAYS)}
    return stubs.upload(zipped(files), "strayed").name


@pytest.fixture(scope="module")
def corrected(stubs: Stubs, strayed: str) -> datasets_pb2.Dataset:
    """Its next version, in which they are blue."""
    corrections = [datasets_pb2.CorrectLabel(path=path, label="blue") for path in STRAYS]
    return stubs.datasets.Relabel(datasets_pb2.RelabelRequest(name=strayed, corrections=corrections), timeout=60)


def test_planted_wrong_labels_come_first(stubs: Stubs, strayed: str) -> None:
    request = insight_pb2.LabelIssuesRequest(model="models/colours", dataset=strayed)
    answer = stubs.insight.LabelIssues(request, timeout=120)
    found = answer.items[: len(STRAYS)]
    assert {item.path for item in found} == set(STRAYS)
    for item in found:
        assert (item.label, item.suggested) == ("red", "blue")
        assert item.suggested_share > 0.5 > item.label_share
        assert item.part in (common_pb2.PART_TRAIN, common_pb2.PART_VALID)
    assert answer.suspected >= len(answer.items) >= answer.confident > 0
    check_figures(answer.figures, "label_issues")


def test_a_corrected_version_is_a_dataset_of_its_own(
    stubs: Stubs, strayed: str, corrected: datasets_pb2.Dataset
) -> None:
    old = stubs.datasets.Get(datasets_pb2.GetDatasetRequest(name=strayed), timeout=20)
    assert corrected.name == "datasets/strayed-v2"
    assert (old.version, corrected.version) == (1, 2)
    assert not old.HasField("origin")
    assert (corrected.origin.dataset, corrected.origin.digest) == (strayed, old.digest)
    assert [(c.path, c.old_label, c.new_label) for c in corrected.origin.corrections] == [
        (path, "red", "blue") for path in STRAYS
    ]
    counts = {c.name: c.train_count + c.valid_count for c in corrected.classes}
    assert counts == {"blue": 20, "green": 14, "red": 14}
    assert old.digest != corrected.digest


def test_a_repeated_relabel_returns_the_first_result(stubs: Stubs, strayed: str) -> None:
    request = datasets_pb2.RelabelRequest(
        request_id=str(uuid.uuid4()), name=strayed, removed=STRAYS, dataset_id="without-strays"
    )
    first = stubs.datasets.Relabel(request, timeout=60)
    assert stubs.datasets.Relabel(request, timeout=60) == first
    assert [c.new_label for c in first.origin.corrections] == [""] * len(STRAYS)
    request.removed.append("red/0.png")
    code, message, _, _ = failure(lambda: stubs.datasets.Relabel(request, timeout=60))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "used for another request" in message


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({}, "INVALID_ARGUMENT", "corrections: got 'none'"),
        ({"removed": ["red/9999.png"]}, "INVALID_ARGUMENT", "removed: got 'red/9999.png', expected a picture of"),
        ({"removed": [f"blue/{i}.png" for i in range(14)]}, "FAILED_PRECONDITION", "class 'blue'"),
        ({"removed": ["red/0.png"], "dataset_id": "colours"}, "ALREADY_EXISTS", "datasets/colours exists"),
        ({"removed": ["red/0.png"], "dataset_id": "Not Good"}, "INVALID_ARGUMENT", "dataset_id: got"),
    ],
)
def test_bad_corrections(stubs: Stubs, strayed: str, fields: dict[str, Any], code: str, words: str) -> None:
    request = datasets_pb2.RelabelRequest(name=strayed, **fields)
    found, message, _, _ = failure(lambda: stubs.datasets.Relabel(request, timeout=60))
    assert (found.name, words in message) == (code, True), message


def test_learning_on_from_the_old_weights_and_comparing(
    stubs: Stubs, trained: jobs_pb2.Job, strayed: str, corrected: datasets_pb2.Dataset
) -> None:
    """A model that learnt the wrong labels, and one that learnt on from it with the right ones."""
    wrong = stubs.wait(stubs.train(strayed, epochs=8, model_id="strayed"))
    job = stubs.wait(stubs.train(corrected.name, epochs=8, model_id="strayed", weights=wrong.train_result.model))
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    assert job.train_result.model == "models/strayed/versions/2"
    request = insight_pb2.CompareModelsRequest(
        before="models/strayed/versions/1", after="models/strayed", part=common_pb2.PART_TRAIN
    )
    answer = stubs.insight.CompareModels(request, timeout=120)
    before, after = (np.array(counts).reshape(3, 3) for counts in (answer.before_counts, answer.after_counts))
    total = sum(c.train_count for c in corrected.classes)
    assert before.sum() == after.sum() == total
    assert np.trace(before) == answer.both_right + answer.broken
    assert np.trace(after) == answer.both_right + answer.fixed
    assert answer.after_accuracy == pytest.approx(np.trace(after) / total)
    assert answer.both_wrong == total - answer.both_right - answer.fixed - answer.broken
    assert 0 < answer.p_value <= 1
    assert len(answer.changes) == answer.fixed + answer.broken
    check_figures(answer.figures, "comparison")


def copies() -> dict[str, bytes]:
    """Structured pictures, and four copies of some of them."""
    files = {}
    originals = {}
    for label, name in enumerate(CLASSES):
        for i in range(12):
            rng = np.random.default_rng([label, i])
            noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            image = noise.resize((48, 48), Image.Resampling.BICUBIC)
            originals[f"{name}/{i}"] = image
            files[f"{name}/{i}.png"] = encoded(image)
    files["blue/mirrored.png"] = encoded(originals["blue/3"].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    files["red/other.jpg"] = encoded(originals["green/5"], "JPEG", quality=60)
    files["green/small.png"] = encoded(originals["green/7"].resize((40, 40)))
    return files


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_planted_copies_are_found(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    stubs.upload(zipped(copies()), "copies")
    request = insight_pb2.DuplicatesRequest(model="models/colours", dataset="datasets/copies")
    answer = stubs.insight.Duplicates(request, timeout=120)
    found = {tuple(sorted((p.first.path, p.second.path))) for p in answer.pairs}
    assert found == {
        ("blue/3.png", "blue/mirrored.png"),
        ("green/5.png", "red/other.jpg"),
        ("green/7.png", "green/small.png"),
    }
    assert answer.found == 3
    labels = {(p.first.label, p.second.label) for p in answer.pairs}
    assert {tuple(sorted(pair)) for pair in labels} == {("blue", "blue"), ("green", "green"), ("green", "red")}
    check_figures(answer.figures, "duplicates")
    none = stubs.insight.Duplicates(insight_pb2.DuplicatesRequest(model="models/colours"), timeout=120)
    assert (none.found, len(none.pairs)) == (0, 0)


def test_bad_questions(stubs: Stubs, strayed: str) -> None:
    request = insight_pb2.DuplicatesRequest(model="models/colours", least_correlation=2)
    _, message, fields, _ = failure(lambda: stubs.insight.Duplicates(request, timeout=60))
    assert "least_correlation" in fields
    issues = insight_pb2.LabelIssuesRequest(model="models/colours", count=101)
    _, message, _, _ = failure(lambda: stubs.insight.LabelIssues(issues, timeout=60))
    assert message == "count: got 101, expected 1 to 100"
    issues = insight_pb2.LabelIssuesRequest(model="models/colours", dataset="datasets/none-such")
    code, message, _, _ = failure(lambda: stubs.insight.LabelIssues(issues, timeout=60))
    assert code == grpc.StatusCode.NOT_FOUND
    compare = insight_pb2.CompareModelsRequest(before="models/colours", after="pets")
    _, message, fields, _ = failure(lambda: stubs.insight.CompareModels(compare, timeout=60))
    assert "after" in fields
