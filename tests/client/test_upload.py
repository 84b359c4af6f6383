"""Uploads: equal folders are equal archives, and broken ones go on where they stopped."""

from __future__ import annotations

import threading
import uuid
import zipfile
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyserve.client.archive import prepared
from pyserve.errors import AbortedError, AlreadyExistsError, DataError, InvalidArgumentError
from pyserve.v1 import datasets_pb2
from tests.client.fake import FakeServer, failing

MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for name in ("cat/1.jpg", "cat/2.bmp", "dog/1.jpg", ".hidden/1.jpg", "cat/.DS_Store", "__MACOSX/x"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    return root


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "data.tar"
    path.write_bytes(bytes(range(256)) * (5 * MIB // 256))
    return path


def test_folder_is_zipped_the_same_way_every_time(folder: Path) -> None:
    with prepared(folder) as first:
        data = first.path.read_bytes()
        with zipfile.ZipFile(first.path) as packed:
            assert packed.namelist() == ["cat/1.jpg", "cat/2.bmp", "dog/1.jpg"]
            kinds = [info.compress_type for info in packed.infolist()]
            assert kinds == [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED]
            assert packed.read("dog/1.jpg") == b"dog/1.jpg" * 100
    assert not first.path.exists()
    (folder / "dog" / "1.jpg").touch()
    with prepared(str(folder)) as second:
        assert second.path.read_bytes() == data
        assert second.sha256 == first.sha256


def test_linked_folders_are_followed_once(folder: Path) -> None:
    (folder / "dog" / "loop").symlink_to(folder)
    (folder / "dog" / "2.jpg").symlink_to(folder / "cat" / "1.jpg")
    with prepared(folder) as archive, zipfile.ZipFile(archive.path) as packed:
        assert packed.namelist() == ["cat/1.jpg", "cat/2.bmp", "dog/1.jpg", "dog/2.jpg"]


def test_what_cannot_be_sent_is_told(tmp_path: Path, client: Any, fake: FakeServer) -> None:
    with pytest.raises(InvalidArgumentError, match=r"path: got '.*nowhere', expected a folder or an archive file"):
        client.upload_dataset(tmp_path / "nowhere", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no files"):
        client.upload_dataset(tmp_path / "empty", "x")
    assert not fake.requests


def test_upload_sends_everything_and_tells_progress(client: Any, fake: FakeServer, archive: Path) -> None:
    steps: list[tuple[int, int]] = []
    dataset = client.upload_dataset(
        archive,
        "pets",
        valid_fraction=0.3,
        seed=7,
        bad_images="refuse",
        progress=lambda sent, total: steps.append((sent, total)),
    )
    assert dataset.name == "datasets/pets"
    header = fake.requests[0]
    assert (header.options.valid_fraction, header.options.seed) == (0.3, 7)
    assert header.options.bad_images == datasets_pb2.REFUSE
    assert steps == [(i * MIB, 5 * MIB) for i in range(6)]


@pytest.mark.parametrize("breaks", [[1], [2 * MIB], [MIB, 3 * MIB, 4 * MIB]])
def test_broken_upload_goes_on_where_it_stopped(
    client: Any, fake: FakeServer, archive: Path, breaks: list[int]
) -> None:
    fake.upload_breaks = list(breaks)
    fake.upload_aborts = 0
    assert client.upload_dataset(archive, "pets").name == "datasets/pets"
    headers = [r for r in fake.requests if isinstance(r, datasets_pb2.UploadHeader)]
    assert len({header.request_id for header in headers}) == 1
    assert [header.offset_bytes for header in headers] == [0, *[max(end, MIB) for end in breaks]]


def test_upload_that_was_finished_after_all_is_not_sent_again(
    client: Any, fake: FakeServer, archive: Path
) -> None:
    request_id = str(uuid.uuid4())
    fake.made[request_id] = datasets_pb2.Dataset(name="datasets/pets")
    assert client.upload_dataset(archive, "pets", request_id=request_id).name == "datasets/pets"
    assert [type(r) for r in fake.requests] == [datasets_pb2.QueryUploadRequest]


def test_resuming_waits_until_the_server_let_go_of_the_first_connection(
    client: Any, fake: FakeServer, archive: Path
) -> None:
    fake.upload_breaks = [MIB]

    def abort_next(context: grpc.ServicerContext) -> None:
        fake.upload_aborts = 2

    fake.failures = [lambda context: None, abort_next]
    assert client.upload_dataset(archive, "pets").name == "datasets/pets"
    assert fake.upload_aborts == 0


def test_first_aborted_upload_is_an_error(client: Any, fake: FakeServer, archive: Path) -> None:
    fake.upload_aborts = 1
    with pytest.raises(AbortedError):
        client.upload_dataset(archive, "pets")


def test_refused_upload_raises_the_reason(client: Any, fake: FakeServer, archive: Path) -> None:
    # More than once: asyncio's gRPC may lose the answer to an upload that is still sending, and asks again.
    fake.failures = [failing(grpc.StatusCode.ALREADY_EXISTS, "datasets/pets exists already")] * 9
    with pytest.raises(AlreadyExistsError, match="datasets/pets exists already"):
        client.upload_dataset(archive, "pets")


def test_upload_survives_a_restart_of_the_server(client: Any, fake: FakeServer, archive: Path) -> None:
    def restart(context: grpc.ServicerContext) -> None:
        threading.Thread(target=lambda: (fake.stop(), fake.start())).start()
        context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    fake.failures = [restart]
    assert client.upload_dataset(archive, "pets").name == "datasets/pets"
