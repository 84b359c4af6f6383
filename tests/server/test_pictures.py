"""Pictures of datasets, as they are shown."""

from __future__ import annotations

import io
import threading

import grpc
import pytest
from PIL import Image

from pyserve.data.catalog import Catalog
from pyserve.v1 import datasets_pb2
from tests.server.conftest import ServerThread
from tests.server.support import Stubs, failure, pictures, zipped


def request(path: str, name: str = "datasets/colours", **fields: int) -> datasets_pb2.GetPictureRequest:
    return datasets_pb2.GetPictureRequest(name=name, path=path, **fields)


def test_a_picture_comes_as_a_jpeg_of_its_size(stubs: Stubs) -> None:
    figure = stubs.datasets.GetPicture(request("red/3.png"), timeout=20)
    assert (figure.name, figure.media_type) == ("3.jpg", "image/jpeg")
    shown = Image.open(io.BytesIO(figure.data))
    assert (shown.format, shown.size) == ("JPEG", (16, 16))
    red, _, blue = shown.resize((1, 1)).getpixel((0, 0))
    assert red > blue + 50


@pytest.mark.parametrize("max_side", [0, 15, 2049])
def test_a_wrong_size_is_named(stubs: Stubs, max_side: int) -> None:
    call = request("red/3.png", max_side=max_side)
    code, message, fields, _ = failure(lambda: stubs.datasets.GetPicture(call, timeout=20))
    assert (code, list(fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["max_side"])
    assert message == f"max_side: got {max_side}, expected 16…2048 pixels"


@pytest.mark.parametrize("path", ["", "red/none.png", "../colours/manifest.json", "/etc/passwd"])
def test_only_pictures_of_the_dataset_are_shown(stubs: Stubs, path: str) -> None:
    code, message, fields, _ = failure(lambda: stubs.datasets.GetPicture(request(path), timeout=20))
    assert (code, list(fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["path"])
    assert "expected a picture of datasets/colours, such as blue/0.png" in message


def test_pictures_hold_up_nobody(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, go_on = threading.Semaphore(0), threading.Event()

    def slow(catalog: Catalog, name: str, path: str, max_side: int) -> bytes:
        busy.release()
        assert go_on.wait(60)
        return b"shown"

    monkeypatch.setattr(Catalog, "preview", slow)
    try:
        calls = [server.stubs.datasets.GetPicture.future(request("red/3.png"), timeout=60) for _ in range(40)]
        assert all(busy.acquire(timeout=20) for _ in range(2))
        for _ in range(10):  # as many as there are other threads, and more
            server.stubs.datasets.Get(datasets_pb2.GetDatasetRequest(name="datasets/colours"), timeout=20)
        assert not any(call.done() for call in calls)
    finally:
        go_on.set()
    assert {call.result().data for call in calls} == {b"shown"}


def test_a_picture_that_is_gone_is_data_loss(server: ServerThread) -> None:
    server.stubs.upload(zipped(pictures(4)), "fading")
    [file] = server.settings.data_dir.glob("datasets/fading/images/**/red/2.png")
    file.unlink()
    call = request("red/2.png", "datasets/fading")
    code, message, _, _ = failure(lambda: server.stubs.datasets.GetPicture(call, timeout=20))
    assert code == grpc.StatusCode.DATA_LOSS
    assert message == "datasets/fading: red/2.png cannot be read any more: No such file or directory"
