"""Bad input of each kind in jobs, models, predictions and insight gets the error of the service's contract."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from pyserve.v1 import datasets_pb2, insight_pb2, jobs_pb2, models_pb2, predict_pb2
from tests.server.support import TRUNCATED, Stubs, bomb, failure, png, train_request

Code = grpc.StatusCode
NIL = "00000000-0000-7000-8000-000000000000"
TOKEN: dict[str, Any] = {"page_token": "?"}


TRAININGS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str, str]] = {
    "epochs": ({"epochs": -1}, Code.INVALID_ARGUMENT, "train.epochs", "got -1, expected ≥ 1"),
    "lr": ({"learning_rate": float("nan")}, Code.INVALID_ARGUMENT, "train.learning_rate", "got nan"),
    "lr inf": ({"learning_rate": float("inf")}, Code.INVALID_ARGUMENT, "train.learning_rate", "got inf"),
    "architecture": ({"architecture": "lenet9"}, Code.INVALID_ARGUMENT, "train.architecture", "smallnet"),
    "weights": ({"weights": "gone.pth"}, Code.NOT_FOUND, "train.weights", "gone.pth"),
    "weights outside": ({"weights": "../../etc/passwd"}, Code.NOT_FOUND, "train.weights", "passwd"),
    "weights model": ({"weights": "models/nobody"}, Code.NOT_FOUND, "", "models/nobody"),
    "schedule": ({"schedule": "zigzag"}, Code.INVALID_ARGUMENT, "train.schedule", "one_cycle"),
    "model id": ({"model_id": "A B"}, Code.INVALID_ARGUMENT, "train.model_id", "A B"),
    "lr_from": ({"lr_from": "jobs/x"}, Code.INVALID_ARGUMENT, "train.lr_from", "jobs/x"),
    "lr_from gone": ({"lr_from": f"jobs/{NIL}"}, Code.NOT_FOUND, "", NIL),
    "dataset": ({"dataset": "datasets/nobody"}, Code.NOT_FOUND, "", "datasets/colours"),
    "dataset name": ({"dataset": "colours"}, Code.INVALID_ARGUMENT, "train.dataset", "colours"),
    "recipe": ({"recipe": "lesson7"}, Code.INVALID_ARGUMENT, "train.recipe", "lesson1"),
    "recipe weights": ({"recipe": "lesson1"}, Code.INVALID_ARGUMENT, "train.weights", "weights to begin with"),
    "auto epochs": (
        {"recipe": "auto", "time_budget_minutes": 1.0},
        Code.INVALID_ARGUMENT,
        "train.batch_size",
        "recipe auto chooses it",
    ),
    "budget": ({"time_budget_minutes": 1.0}, Code.INVALID_ARGUMENT, "train.time_budget_minutes", "recipe auto"),
    "size for the network": (
        {"architecture": "vgg16", "image_size": 16},
        Code.INVALID_ARGUMENT,
        "train.image_size",
        "≥ 32, which vgg16 takes at least",
    ),
    "start size": ({"start_image_size": 64}, Code.INVALID_ARGUMENT, "train.start_image_size", "≤ image_size"),
    "mixup": ({"mixup": float("nan")}, Code.INVALID_ARGUMENT, "train.mixup", "got nan"),
    "request id": ({"request_id": "mine"}, Code.INVALID_ARGUMENT, "request_id", "UUID"),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_bad_trainings(stubs: Stubs, kind: str) -> None:
    fields, expected, field, words = TRAININGS[kind]
    before = stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20)
    code, message, violations, _ = failure(lambda: stubs.train(**fields))
    assert code == expected, message
    assert words in message
    assert not field or list(violations) == [field]
    assert stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20) == before


def test_bad_finders(stubs: Stubs) -> None:
    spec = jobs_pb2.FindLearningRateSpec(training=train_request(epochs=-1).train, start_lr=1, end_lr=0.1, steps=-5)
    request = jobs_pb2.FindLearningRateRequest(find_learning_rate=spec)
    code, _, violations, _ = failure(lambda: stubs.jobs.FindLearningRate(request, timeout=20))
    assert code == Code.INVALID_ARGUMENT
    assert set(violations) == {
        "find_learning_rate.training.epochs",
        "find_learning_rate.end_lr",
        "find_learning_rate.steps",
    }


def test_nothing_to_train(stubs: Stubs) -> None:
    code, _, violations, _ = failure(lambda: stubs.jobs.Train(jobs_pb2.TrainRequest(), timeout=20))
    assert (code, list(violations)) == (Code.INVALID_ARGUMENT, ["train.dataset"])


def test_learning_rate_from_a_training_is_refused(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    code, message, violations, _ = failure(lambda: stubs.train(lr_from=trained.name))
    assert (code, list(violations)) == (Code.INVALID_ARGUMENT, ["train.lr_from"])
    assert trained.name in message


CALLS: dict[str, tuple[str, str, Any, grpc.StatusCode]] = {
    "dataset name": ("datasets", "Get", datasets_pb2.GetDatasetRequest(name="x"), Code.INVALID_ARGUMENT),
    "dataset": ("datasets", "Get", datasets_pb2.GetDatasetRequest(name="datasets/x"), Code.NOT_FOUND),
    "dataset page": ("datasets", "List", datasets_pb2.ListDatasetsRequest(page_size=-1), Code.INVALID_ARGUMENT),
    "dataset token": ("datasets", "List", datasets_pb2.ListDatasetsRequest(**TOKEN), Code.INVALID_ARGUMENT),
    "delete": ("datasets", "Delete", datasets_pb2.DeleteDatasetRequest(name="datasets/x"), Code.NOT_FOUND),
    "picture": ("datasets", "GetPicture", datasets_pb2.GetPictureRequest(name="datasets/x"), Code.NOT_FOUND),
    "picture name": ("datasets", "GetPicture", datasets_pb2.GetPictureRequest(path="x"), Code.INVALID_ARGUMENT),
    "query": ("datasets", "QueryUpload", datasets_pb2.QueryUploadRequest(), Code.INVALID_ARGUMENT),
    "register outside": (
        "datasets",
        "Register",
        datasets_pb2.RegisterRequest(dataset_id="x", path="/etc"),
        Code.PERMISSION_DENIED,
    ),
    "register nothing": (
        "datasets",
        "Register",
        datasets_pb2.RegisterRequest(dataset_id="x"),
        Code.INVALID_ARGUMENT,
    ),
    "job name": ("jobs", "Get", jobs_pb2.GetJobRequest(name="jobs/1"), Code.INVALID_ARGUMENT),
    "job": ("jobs", "Get", jobs_pb2.GetJobRequest(name=f"jobs/{NIL}"), Code.NOT_FOUND),
    "job page": ("jobs", "List", jobs_pb2.ListJobsRequest(page_size=-1), Code.INVALID_ARGUMENT),
    "job token": ("jobs", "List", jobs_pb2.ListJobsRequest(**TOKEN), Code.INVALID_ARGUMENT),
    "cancel": ("jobs", "Cancel", jobs_pb2.CancelJobRequest(name=f"jobs/{NIL}"), Code.NOT_FOUND),
    "resume": ("jobs", "Resume", jobs_pb2.ResumeJobRequest(name=f"jobs/{NIL}"), Code.NOT_FOUND),
    "artifact name": (
        "jobs",
        "GetArtifact",
        jobs_pb2.GetArtifactRequest(name=f"jobs/{NIL}/artifacts/../x"),
        Code.INVALID_ARGUMENT,
    ),
    "artifact": (
        "jobs",
        "GetArtifact",
        jobs_pb2.GetArtifactRequest(name=f"jobs/{NIL}/artifacts/x"),
        Code.NOT_FOUND,
    ),
    "model name": ("models", "Get", models_pb2.GetModelRequest(name="models/x/versions/0"), Code.INVALID_ARGUMENT),
    "model": ("models", "Get", models_pb2.GetModelRequest(name="models/x"), Code.NOT_FOUND),
    "model page": ("models", "List", models_pb2.ListModelsRequest(page_size=-1), Code.INVALID_ARGUMENT),
    "model token": ("models", "List", models_pb2.ListModelsRequest(**TOKEN), Code.INVALID_ARGUMENT),
    "losses": ("insight", "TopLosses", insight_pb2.TopLossesRequest(model="models/x"), Code.NOT_FOUND),
    "confusion": (
        "insight",
        "ConfusionMatrix",
        insight_pb2.ConfusionMatrixRequest(model=""),
        Code.INVALID_ARGUMENT,
    ),
}


@pytest.mark.parametrize("kind", CALLS)
def test_bad_names_and_pages(stubs: Stubs, kind: str) -> None:
    service, method, request, expected = CALLS[kind]
    code, message, _, _ = failure(lambda: getattr(getattr(stubs, service), method)(request, timeout=20))
    assert code == expected, message
    assert message


def test_not_found_names_what_exists(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    get = models_pb2.GetModelRequest(name="models/nobody")
    assert "models/colours" in failure(lambda: stubs.models.Get(get, timeout=20))[1]
    got = datasets_pb2.GetDatasetRequest(name="datasets/nobody")
    assert "datasets/colours" in failure(lambda: stubs.datasets.Get(got, timeout=20))[1]


def predict_request(**fields: Any) -> predict_pb2.PredictRequest:
    images = predict_pb2.EncodedImages(data=[png(0, 1)])
    return predict_pb2.PredictRequest(**({"model": "models/colours", "images": images} | fields))


def tensor(shape: list[int], dtype: str = "uint8", size: int | None = None) -> dict[str, Any]:
    count = size if size is not None else 3 * 16 * 16
    return {"images": None, "tensor": predict_pb2.Tensor(shape=shape, dtype=dtype, data=bytes(count))}


PREDICTIONS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str]] = {
    "no model": ({"model": ""}, Code.INVALID_ARGUMENT, "model"),
    "unknown model": ({"model": "models/nobody"}, Code.NOT_FOUND, "models/colours"),
    "unknown version": ({"model": "models/colours/versions/99"}, Code.NOT_FOUND, "99"),
    "top_k": ({"top_k": 0}, Code.INVALID_ARGUMENT, "top_k"),
    "no input": ({"images": None}, Code.INVALID_ARGUMENT, "images"),
    "no pictures": ({"images": predict_pb2.EncodedImages()}, Code.INVALID_ARGUMENT, "images"),
    "too many": ({"images": predict_pb2.EncodedImages(data=[b"x"] * 65)}, Code.RESOURCE_EXHAUSTED, "64"),
    "corrupt": (
        {"images": predict_pb2.EncodedImages(data=[png(0, 1)] * 20 + [TRUNCATED])},
        Code.INVALID_ARGUMENT,
        "images.data[20]",
    ),
    "bomb": ({"images": predict_pb2.EncodedImages(data=[bomb()])}, Code.INVALID_ARGUMENT, "images.data[0]"),
    "shape": (tensor([1, 5, 16, 16]), Code.INVALID_ARGUMENT, "tensor.shape"),
    "rank": (tensor([3, 16, 16]), Code.INVALID_ARGUMENT, "tensor.shape"),
    "negative": (tensor([-1, 3, 16, 16]), Code.INVALID_ARGUMENT, "tensor.shape"),
    "huge": (tensor([2**40, 3, 16, 16]), Code.RESOURCE_EXHAUSTED, "tensor.shape"),
    "size": (tensor([1, 3, 8, 8], size=192), Code.INVALID_ARGUMENT, "tensor.shape"),
    "bytes": (tensor([1, 3, 16, 16], size=5), Code.INVALID_ARGUMENT, "tensor.data"),
    "dtype": (tensor([1, 3, 16, 16], "float16"), Code.INVALID_ARGUMENT, "tensor.dtype"),
}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_bad_predictions(stubs: Stubs, trained: jobs_pb2.Job, kind: str) -> None:
    fields, expected, words = PREDICTIONS[kind]
    code, message, _, _ = failure(lambda: stubs.predict.Predict(predict_request(**fields), timeout=20))
    assert code == expected, message
    assert words in message


@pytest.mark.parametrize("count", [0, 101])
def test_bad_counts(stubs: Stubs, trained: jobs_pb2.Job, count: int) -> None:
    request = insight_pb2.TopLossesRequest(model="models/colours", count=count)
    code, _, violations, _ = failure(lambda: stubs.insight.TopLosses(request, timeout=60))
    assert (code, list(violations)) == (Code.INVALID_ARGUMENT, ["count"])


def test_bad_part_and_order(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    wrong: Any = 77
    part = insight_pb2.ConfusionMatrixRequest(model="models/colours", part=wrong)
    assert list(failure(lambda: stubs.insight.ConfusionMatrix(part, timeout=60))[2]) == ["part"]
    order = insight_pb2.TopLossesRequest(model="models/colours", order=wrong)
    assert list(failure(lambda: stubs.insight.TopLosses(order, timeout=60))[2]) == ["order"]


def test_ended_jobs_stay_as_they_are(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    cancel, resume = jobs_pb2.CancelJobRequest(name=trained.name), jobs_pb2.ResumeJobRequest(name=trained.name)
    assert failure(lambda: stubs.jobs.Cancel(cancel, timeout=20))[0] == Code.FAILED_PRECONDITION
    assert failure(lambda: stubs.jobs.Resume(resume, timeout=20))[0] == Code.FAILED_PRECONDITION
    assert stubs.jobs.Get(jobs_pb2.GetJobRequest(name=trained.name), timeout=20) == trained
