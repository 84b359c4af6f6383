"""The calls, on both clients, against a server that fails as it is told."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from pyserve.client import AsyncClient, Client
from pyserve.client.calls import Calls
from pyserve.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from pyserve.v1 import datasets_pb2, jobs_pb2
from tests.client.fake import Driven, FakeServer, details, failing, unavailable


def test_importing_the_client_loads_no_torch() -> None:
    code = "import sys, pyserve.client; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_both_clients_have_the_same_calls() -> None:
    public = {name for name, _ in inspect.getmembers(Calls, inspect.isfunction) if not name.startswith("_")}
    assert public <= set(vars(Client))
    assert public <= set(dir(AsyncClient))
    assert all(getattr(Client, name).__doc__ for name in public)


def test_errors_come_with_fields_delay_and_metadata(client: Any, fake: FakeServer) -> None:
    fake.failures = [failing(grpc.StatusCode.INVALID_ARGUMENT, "train.epochs: got -1", *details())]
    with pytest.raises(InvalidArgumentError, match=r"^train.epochs: got -1$") as caught:
        client.train(dataset="datasets/x", epochs=-1)
    assert [(v.field, v.description) for v in caught.value.fields] == [("train.epochs", "got -1")]
    assert caught.value.retry_delay_s == 1.5
    assert caught.value.metadata == {"limit": "3"}
    assert len(fake.requests) == 1


def test_status_without_details_keeps_its_kind(client: Any, fake: FakeServer) -> None:
    fake.failures = [lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "no such job")]
    with pytest.raises(NotFoundError, match="no such job"):
        client.get_job("jobs/x")


def test_creates_are_retried_with_the_same_request_id(client: Any, fake: FakeServer) -> None:
    fake.failures = [unavailable, unavailable]
    job = client.train(dataset="datasets/x", epochs=3)
    assert job.name == "jobs/0"
    ids = {request.request_id for request in fake.requests}
    assert len(fake.requests) == 3
    assert len(ids) == 1
    uuid.UUID(ids.pop())
    assert fake.requests[0].train.epochs == 3
    assert not fake.requests[0].train.HasField("batch_size")


@pytest.mark.parametrize("call", ["delete_dataset", "cancel_job", "resume_job", "delete_job"])
def test_calls_that_change_their_own_answer_are_not_retried(call: str, client: Any, fake: FakeServer) -> None:
    fake.failures = [unavailable]
    with pytest.raises(UnavailableError):
        getattr(client, call)("x/y")
    assert len(fake.requests) == 1


def test_retries_wait_as_long_as_the_server_asks(client: Any, fake: FakeServer) -> None:
    *others, retry = details()
    retry.retry_delay.FromSeconds(60)
    fake.failures = [failing(grpc.StatusCode.UNAVAILABLE, "draining", *others, retry)]
    with pytest.raises(UnavailableError, match="draining"):  # a minute is beyond the client's patience
        client.get_job("jobs/x")
    assert len(fake.requests) == 1


@pytest.mark.parametrize("kind", [Client, Driven])
def test_unreachable_server_says_how_to_start_it(kind: Any, fake: FakeServer) -> None:
    fake.stop()
    client = kind(fake.address, retry_s=0.3)
    with pytest.raises(UnavailableError, match=rf"{fake.address}; start one with `pyserve serve`"):
        client.list_jobs()
    client.close()


def test_deadline_is_kept(client: Any, fake: FakeServer) -> None:
    release = threading.Event()
    fake.failures = [lambda context: release.wait(20)]
    with pytest.raises(DeadlineExceededError, match=r"within 0\.\d+ s"):
        client.get_job("jobs/x", timeout_s=0.3)
    release.set()


def test_lists_gather_all_pages(client: Any, fake: FakeServer) -> None:
    assert [d.name for d in client.list_datasets()] == [f"datasets/{i}" for i in range(6)]
    assert [request.page_token for request in fake.requests] == ["", "1", "2"]
    assert [job.state for job in client.list_jobs([jobs_pb2.RUNNING])] == [jobs_pb2.RUNNING]


def test_a_picture_of_a_dataset(client: Any, fake: FakeServer) -> None:
    assert client.get_picture("datasets/x", "a/1.png", max_side=64).data == b"a/1.png"
    assert client.get_picture("datasets/x", "b.png").media_type == "image/jpeg"
    assert fake.requests == [
        datasets_pb2.GetPictureRequest(name="datasets/x", path="a/1.png", max_side=64),
        datasets_pb2.GetPictureRequest(name="datasets/x", path="b.png"),
    ]


def test_unknown_and_ill_typed_fields_are_named(client: Any, fake: FakeServer) -> None:
    with pytest.raises(InvalidArgumentError, match=r"train\.epoch: got 3, expected no such field"):
        client.train(dataset="datasets/x", epoch=3)
    with pytest.raises(InvalidArgumentError, match=r"find_learning_rate\.training\.epochs: got 'three'"):
        client.find_learning_rate(dataset="datasets/x", epochs="three")
    with pytest.raises(InvalidArgumentError, match=r"order: got 'worst', expected one of most_incorrect"):
        client.top_losses("models/x", order="worst")
    assert not fake.requests


def test_finder_takes_fields_of_both_specs(client: Any, fake: FakeServer) -> None:
    client.find_learning_rate(dataset="datasets/x", steps=50, batch_size=8)
    spec = fake.requests[0].find_learning_rate
    assert (spec.steps, spec.training.batch_size, spec.training.dataset) == (50, 8, "datasets/x")


@pytest.mark.parametrize("breaks", [[], [0], [3, 2], [1, 0, 1, 0, 5]])
def test_watch_neither_repeats_nor_loses(client: Any, fake: FakeServer, breaks: list[int]) -> None:
    fake.watch_breaks = list(breaks)
    assert [event.seq for event in client.watch("jobs/x")] == list(range(1, 11))
    assert [event.seq for event in client.watch("jobs/x", from_seq=7)] == [7, 8, 9, 10]


def test_watch_survives_a_restart_of_the_server(client: Any, fake: FakeServer) -> None:
    events = client.watch("jobs/x")
    fake.watch_breaks = [4]
    seen = [next(events).seq for _ in range(4)]
    fake.stop()
    threading.Timer(0.5, fake.start).start()
    seen += [event.seq for event in events]
    assert seen == list(range(1, 11))


def test_watch_gives_up_after_its_patience(fake: FakeServer) -> None:
    with Client(fake.address, reconnect_s=0.3) as client:
        events = client.watch("jobs/x")
        fake.watch_breaks = [1]
        next(events)
        fake.stop()
        with pytest.raises(UnavailableError):
            list(events)


def test_watch_drops_repeats_and_tells_gaps(client: Any, fake: FakeServer) -> None:
    fake.events.insert(3, fake.events[1])
    assert [event.seq for event in client.watch("jobs/x")] == list(range(1, 11))
    del fake.events[5]
    with pytest.raises(DataLossError, match="jobs/x: event 6 came where 5 was expected"):
        list(client.watch("jobs/x"))


def test_watch_that_cancels_on_disconnect_does_not_reconnect(client: Any, fake: FakeServer) -> None:
    fake.watch_breaks = [2]
    with pytest.raises(UnavailableError):
        list(client.watch("jobs/x", cancel_on_disconnect=True))
    assert len(fake.requests) == 1


def test_leaving_a_watch_ends_its_stream(client: Any, fake: FakeServer) -> None:
    done = threading.Event()
    fake.failures = [lambda context: context.add_callback(done.set)]
    fake.events = [jobs_pb2.Event(seq=i) for i in range(1, 200_000)]
    events = client.watch("jobs/x")
    assert next(events).seq == 1
    events.close()
    assert done.wait(10)


def test_wait_returns_the_ended_job_and_tells_events(client: Any, fake: FakeServer) -> None:
    seen: list[int] = []
    job = client.wait("jobs/x", on_event=lambda event: seen.append(event.seq))
    assert job.state == jobs_pb2.SUCCEEDED
    assert seen == list(range(1, 11))


def test_predict_splits_large_batches_over_one_version(client: Any, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    answer = client.predict("models/m", [str(path), *[b"x"] * 149], top_k=1)
    assert len(answer.predictions) == 150
    assert [len(request.images.data) for request in fake.requests] == [64, 64, 22]
    assert [request.model for request in fake.requests] == ["models/m", *["models/m/versions/1"] * 2]
    assert fake.requests[0].images.data[0] == b"first"
    assert answer.model == "models/m/versions/1"


def test_bad_pictures_are_named_as_the_caller_knows_them(client: Any, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=f"images.data[{i}]", description="is no picture")
        for i in (0, 2)
    ]
    bad = error_details_pb2.BadRequest(field_violations=violations)
    fake.failures = [lambda _: None, failing(grpc.StatusCode.INVALID_ARGUMENT, "as the server says it", bad)]
    with pytest.raises(InvalidArgumentError) as info:
        client.predict("models/m", [*[b"x"] * 66, path])
    assert info.value.message == f"images[64]: is no picture; {path}: is no picture"
    assert [v.field for v in info.value.fields] == ["images[64]", "images[66]"]


def test_predict_splits_by_size(client: Any, fake: FakeServer) -> None:
    client.predict("models/m", [b"x" * 20_000_000] * 3)
    assert [len(request.images.data) for request in fake.requests] == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4"])
def test_predict_takes_arrays(client: Any, fake: FakeServer, dtype: str) -> None:
    array = (np.arange(70 * 2 * 2 * 3) % 7).reshape(70, 2, 2, 3).astype(dtype)
    answer = client.predict("models/m", array)
    assert len(answer.predictions) == 70
    parts = [np.frombuffer(r.tensor.data, "<f4" if r.tensor.dtype == "float32" else "u1") for r in fake.requests]
    assert [list(r.tensor.shape) for r in fake.requests] == [[64, 2, 2, 3], [6, 2, 2, 3]]
    assert np.array_equal(np.concatenate(parts), array.ravel())


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((1, 2, 2, 3)), "images: got 'an array of float64', expected uint8"),
        (np.zeros((2, 2, 3), np.uint8), r"images: got \[2, 2, 3\], expected an array of shape \[N, H, W, 3\]"),
        (["no-such.png"], r"images\[0\]: got 'no-such.png', expected a readable picture file \(no such file"),
        ([b"x", 3], r"images\[1\]: got 'int', expected a path, bytes"),
    ],
)
def test_pictures_of_other_kinds_are_refused(client: Any, fake: FakeServer, images: Any, sentence: str) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence):
        client.predict("models/m", images)


def test_an_export_that_is_cut_leaves_nothing(client: Any, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    path.write_bytes(b"before")
    fake.export_cut = 1000
    with pytest.raises(DataLossError, match="25000 bytes came, not the 25600 that were sent"):
        client.export_model("models/m", path)
    fake.failures = [unavailable]
    with pytest.raises(UnavailableError):
        client.export_model("models/m", path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.tar"]
    assert path.read_bytes() == b"before"
    fake.export_cut = 0
    client.export_model("models/m", path)
    assert client.import_model(path, "n").size_bytes == path.stat().st_size == 25_600
