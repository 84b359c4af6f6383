"""Bad archives and uploads get the error of the service's contract, and nothing is left behind."""

from __future__ import annotations

import io
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyserve.v1 import datasets_pb2
from tests.server.conftest import ServerThread
from tests.server.support import (
    TRUNCATED,
    Stubs,
    bomb,
    eventually,
    failure,
    pictures,
    png,
    upload_messages,
    zipped,
)

Code = grpc.StatusCode


def on_disk(server: ServerThread) -> set[str]:
    """Everything in the folders of datasets and uploads."""
    root = server.settings.data_dir
    return {str(p.relative_to(root)) for name in ("datasets", "uploads") for p in (root / name).rglob("*")}


def slip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in pictures().items():
            archive.writestr(name, data)
        archive.writestr("../../evil.png", png(0, 0))
    return buffer.getvalue()


REFUSE = {"options": datasets_pb2.DatasetOptions(bad_images=datasets_pb2.REFUSE)}
ARCHIVES: dict[str, tuple[Callable[[], bytes], dict[str, Any], str]] = {
    "corrupt image": (lambda: zipped(pictures() | {"red/bad.png": TRUNCATED}), REFUSE, "red/bad.png"),
    "decompression bomb": (lambda: zipped(pictures() | {"red/bomb.png": bomb()}), REFUSE, "red/bomb.png"),
    "zip slip": (slip, {}, "evil.png"),
    "zip bomb": (lambda: zipped(pictures() | {"red/x.png": b"\0" * 30_000_000}), {}, ""),
    "one class": (lambda: zipped(pictures(classes=("blue",))), {}, "class"),
    "validation part without pictures": (
        lambda: zipped({f"train/{path}": data for path, data in pictures().items()} | {"valid/": b""}),
        {},
        "valid",
    ),
    "validation part without one class": (
        lambda: zipped(
            {
                f"{part}/{path}": data
                for part in ("train", "valid")
                for path, data in pictures().items()
                if (part, path[:3]) != ("valid", "red")
            }
        ),
        {},
        "red",
    ),
    "empty class": (lambda: zipped(pictures() | {"yellow/": b""}), {}, "yellow"),
    "no archive": (lambda: b"nothing like an archive", {}, ""),
    "no pictures": (lambda: zipped({"readme.txt": b"hello"}), {}, ""),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_bad_archives(server: ServerThread, kind: str) -> None:
    make, header, names = ARCHIVES[kind]
    before = on_disk(server)
    request_id = str(uuid.uuid4())
    code, message, _, told = failure(lambda: server.stubs.upload(make(), "bad", request_id=request_id, **header))
    assert code in (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED), message
    assert names in message
    assert str(server.settings.data_dir) not in message
    assert on_disk(server) == before
    assert told.reason in ("DATA", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")


def test_bad_pictures_are_left_out_and_named(stubs: Stubs) -> None:
    bad = {"red/bad.png": TRUNCATED, "red/bomb.png": bomb()}
    dataset = stubs.upload(zipped(pictures() | bad), "some-bad")
    assert {image.path for image in dataset.bad_images} == set(bad)
    assert dataset.train_count + dataset.valid_count == len(pictures())
    stubs.datasets.Delete(datasets_pb2.DeleteDatasetRequest(name=dataset.name), timeout=20)


HEADERS: dict[str, tuple[dict[str, Any], grpc.StatusCode, str]] = {
    "wrong checksum": ({"sha256": "0" * 64}, Code.INVALID_ARGUMENT, "header.sha256"),
    "no checksum": ({"sha256": ""}, Code.INVALID_ARGUMENT, "header.sha256"),
    "size zero": ({"size_bytes": 0}, Code.INVALID_ARGUMENT, "header.size_bytes"),
    "too short": ({"size_bytes": 10}, Code.INVALID_ARGUMENT, "header.size_bytes"),
    "too long": ({"size_bytes": 1_000_000}, Code.INVALID_ARGUMENT, "header.size_bytes"),
    "too large": ({"size_bytes": 10**12}, Code.RESOURCE_EXHAUSTED, "header.size_bytes"),
    "offset": ({"offset_bytes": 100}, Code.FAILED_PRECONDITION, "header.offset_bytes"),
    "request id": ({"request_id": "mine"}, Code.INVALID_ARGUMENT, "header.request_id"),
    "fraction": (
        {"options": datasets_pb2.DatasetOptions(valid_fraction=float("nan"))},
        Code.INVALID_ARGUMENT,
        "header.options.valid_fraction",
    ),
    "seed": ({"options": datasets_pb2.DatasetOptions(seed=-1)}, Code.INVALID_ARGUMENT, "header.options.seed"),
    "policy": (
        {"options": datasets_pb2.DatasetOptions(bad_images=9)},  # type: ignore[arg-type]
        Code.INVALID_ARGUMENT,
        "header.options.bad_images",
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_bad_upload_headers(server: ServerThread, archive: bytes, kind: str) -> None:
    header, expected, field = HEADERS[kind]
    before = on_disk(server)
    code, message, fields, _ = failure(lambda: server.stubs.upload(archive, "bad", **header))
    assert (code, list(fields)) == (expected, [field]), message
    assert message.startswith(f"{field}: got ")
    assert on_disk(server) == before


@pytest.mark.parametrize("name", ["", "Bad", "a/b", "../x", "x" * 64])
def test_bad_dataset_ids(stubs: Stubs, archive: bytes, name: str) -> None:
    code, _, fields, _ = failure(lambda: stubs.upload(archive, name))
    assert (code, list(fields)) == (Code.INVALID_ARGUMENT, ["header.dataset_id"])


def test_taken_dataset_id_is_refused_before_the_bytes(stubs: Stubs, archive: bytes) -> None:
    sent = []

    def messages() -> Iterator[datasets_pb2.UploadRequest]:
        for message in upload_messages(archive, "colours"):
            sent.append(message)
            yield message
            if len(sent) == 1:
                answered.wait(20)

    answered = threading.Event()
    call: Any = stubs.datasets.Upload.future(messages(), timeout=20)
    call.add_done_callback(lambda _: answered.set())
    assert failure(call.result)[0] == Code.ALREADY_EXISTS
    assert len(sent) <= 2


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [datasets_pb2.UploadRequest(chunk=b"x")],
        [*list(upload_messages(b"abcdef", "bad", chunk=3))[:2], next(upload_messages(b"abc", "bad"))],
        [next(upload_messages(bytes(6_000_000), "bad")), datasets_pb2.UploadRequest(chunk=bytes(5_000_000))],
    ],
    ids=["nothing", "no header", "two headers", "large chunk"],
)
def test_uploads_out_of_order(server: ServerThread, messages: list[datasets_pb2.UploadRequest]) -> None:
    before = on_disk(server)
    code, message, _, _ = failure(lambda: server.stubs.datasets.Upload(iter(messages), timeout=20))
    assert code == Code.INVALID_ARGUMENT, message
    assert on_disk(server) == before


def upload_when_free(stubs: Stubs, archive: bytes, dataset_id: str, **header: Any) -> datasets_pb2.Dataset:
    """Upload; as long as the server still notices that the call before is gone, again."""
    for _ in range(100):
        try:
            return stubs.upload(archive, dataset_id, **header)
        except grpc.RpcError as error:
            if error.code() != Code.ABORTED:
                raise
            time.sleep(0.05)
    raise AssertionError("the upload that was cut off still holds its request_id")


@pytest.mark.parametrize("request_id", ["", "6a1f8a6e-8d3c-4a52-9a57-0f7a5f6a2b11"])
def test_upload_cut_off_and_resumed(server: ServerThread, archive: bytes, request_id: str) -> None:
    stubs, before = server.stubs, on_disk(server)
    half = len(archive) // 2

    def messages() -> Iterator[datasets_pb2.UploadRequest]:
        yield next(upload_messages(archive, "cut", request_id=request_id))
        yield datasets_pb2.UploadRequest(chunk=archive[:half])
        cut.wait(20)

    cut = threading.Event()
    call: Any = stubs.datasets.Upload.future(messages(), timeout=20)
    parts = server.settings.data_dir / "uploads"
    eventually(lambda: any(path.stat().st_size == half for path in parts.glob("*.part")))
    call.cancel()
    cut.set()
    if not request_id:
        eventually(lambda: on_disk(server) == before)
        return
    query = datasets_pb2.QueryUploadRequest(request_id=request_id)
    assert stubs.datasets.QueryUpload(query, timeout=20).committed_bytes == half
    resumed = upload_when_free(stubs, archive, "cut", request_id=request_id, offset_bytes=half)
    assert resumed == stubs.upload(archive, "cut", request_id=request_id)
    assert stubs.datasets.QueryUpload(query, timeout=20).dataset == resumed
    stubs.datasets.Delete(datasets_pb2.DeleteDatasetRequest(name="datasets/cut"), timeout=20)


def test_one_request_id_for_two_uploads_at_once(stubs: Stubs, archive: bytes) -> None:
    request_id = str(uuid.uuid4())
    begun, go_on = threading.Event(), threading.Event()

    def messages() -> Iterator[datasets_pb2.UploadRequest]:
        for i, message in enumerate(upload_messages(archive, "twice", request_id=request_id)):
            yield message
            if i == 1:
                begun.set()
                go_on.wait(20)

    first: Any = stubs.datasets.Upload.future(messages(), timeout=30)
    begun.wait(20)
    query = datasets_pb2.QueryUploadRequest(request_id=request_id)
    eventually(lambda: stubs.datasets.QueryUpload(query, timeout=20).committed_bytes > 0)
    assert failure(lambda: stubs.upload(archive, "twice", request_id=request_id))[0] == Code.ABORTED
    go_on.set()
    assert first.result().name == "datasets/twice"
    stubs.datasets.Delete(datasets_pb2.DeleteDatasetRequest(name="datasets/twice"), timeout=20)


def test_request_id_of_another_upload(stubs: Stubs, archive: bytes) -> None:
    request_id = str(uuid.uuid4())
    stubs.upload(archive, "first", request_id=request_id)
    code, message, _, _ = failure(lambda: stubs.upload(archive, "second", request_id=request_id))
    assert code == Code.INVALID_ARGUMENT
    assert "header.request_id" in message
    stubs.datasets.Delete(datasets_pb2.DeleteDatasetRequest(name="datasets/first"), timeout=20)


def test_register_under_a_root(server: ServerThread, tmp_path: Path) -> None:
    root = server.settings.dataset_roots[0]
    for name, data in pictures(6).items():
        path = root / "shelf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    request = datasets_pb2.RegisterRequest(request_id=str(uuid.uuid4()), dataset_id="shelf", path="shelf")
    first = server.stubs.datasets.Register(request, timeout=20)
    assert server.stubs.datasets.Register(request, timeout=20) == first
    other = datasets_pb2.RegisterRequest(dataset_id="shelf", path="shelf")
    assert failure(lambda: server.stubs.datasets.Register(other, timeout=20))[0] == Code.ALREADY_EXISTS
    (root / "way-out").symlink_to(tmp_path)
    escape = datasets_pb2.RegisterRequest(dataset_id="escape", path="way-out")
    assert failure(lambda: server.stubs.datasets.Register(escape, timeout=20))[0] == Code.PERMISSION_DENIED
    server.stubs.datasets.Delete(datasets_pb2.DeleteDatasetRequest(name="datasets/shelf"), timeout=20)
    assert (root / "shelf" / "red" / "0.png").exists()
