"""Uploads: what is kept, what is removed, what is refused before a byte is sent."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from pyserve.errors import (
    AbortedError,
    AlreadyExistsError,
    DataError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from pyserve.server.ledger import RequestLedger
from pyserve.server.uploads import UploadPlan, Uploads

CONTENT = bytes(range(256)) * 40


def plan(request_id: str = "", offset: int = 0, **changes: Any) -> UploadPlan:
    values: dict[str, Any] = {
        "resource_id": "pets",
        "size_bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "request_id": request_id,
        "offset_bytes": offset,
        "options": {"seed": 1},
    }
    return UploadPlan(**(values | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def uploads(folder: Path) -> Uploads:
    return Uploads(RequestLedger(folder, ttl_s=3600), max_bytes=1_000_000)


def free(_: str) -> None:
    """No dataset is in the way."""


def make(path: Path) -> str:
    assert path.read_bytes() == CONTENT
    return "datasets/pets"


def test_whole_upload_leaves_only_the_record(uploads: Uploads, folder: Path) -> None:
    request_id = str(uuid.uuid4())
    upload = uploads.begin(plan(request_id))
    assert upload.open(free) == ""
    for i in range(0, len(CONTENT), 1000):
        upload.write(CONTENT[i : i + 1000])
    assert upload.finish(make) == "datasets/pets"
    upload.close()
    assert uploads.query(request_id) == (0, "datasets/pets")
    assert [p.name for p in folder.iterdir()] == [f"{request_id}.json"]
    again = uploads.begin(plan(request_id))
    assert again.open(free) == "datasets/pets"
    again.close()


def test_broken_upload_goes_on_where_it_broke(uploads: Uploads) -> None:
    request_id = str(uuid.uuid4())
    first = uploads.begin(plan(request_id))
    first.open(free)
    first.write(CONTENT[:3000])
    first.close()
    assert uploads.query(request_id) == (3000, "")
    second = uploads.begin(plan(request_id, offset=3000))
    second.open(free)
    second.write(CONTENT[3000:])
    assert second.finish(make) == "datasets/pets"
    second.close()


def test_broken_upload_may_start_anew(uploads: Uploads) -> None:
    request_id = str(uuid.uuid4())
    first = uploads.begin(plan(request_id))
    first.open(free)
    first.write(b"x" * 3000)
    first.close()
    second = uploads.begin(plan(request_id))
    second.open(free)
    second.write(CONTENT)
    assert second.finish(make) == "datasets/pets"
    second.close()


def test_broken_upload_without_id_leaves_nothing(uploads: Uploads, folder: Path) -> None:
    upload = uploads.begin(plan())
    upload.open(free)
    upload.write(CONTENT[:3000])
    upload.close()
    assert list(folder.iterdir()) == []


def test_missing_bytes_stay_resumable(uploads: Uploads) -> None:
    request_id = str(uuid.uuid4())
    upload = uploads.begin(plan(request_id))
    upload.open(free)
    upload.write(CONTENT[:3000])
    with pytest.raises(InvalidArgumentError, match="3000 bytes that were sent; go on from offset_bytes 3000"):
        upload.finish(make)
    upload.close()
    assert uploads.query(request_id) == (3000, "")


@pytest.mark.parametrize("request_id", ["", "4f9f0a1e-8d3c-4a52-9a57-0f7a5f6a2b11"])
def test_wrong_checksum_leaves_nothing(uploads: Uploads, folder: Path, request_id: str) -> None:
    upload = uploads.begin(plan(request_id, sha256="0" * 64))
    upload.open(free)
    upload.write(CONTENT)
    with pytest.raises(DataError, match=r"header\.sha256: got '000"):
        upload.finish(make)
    upload.close()
    assert list(folder.iterdir()) == []


def test_too_many_bytes(uploads: Uploads, folder: Path) -> None:
    upload = uploads.begin(plan(str(uuid.uuid4())))
    upload.open(free)
    with pytest.raises(DataError, match="size_bytes"):
        upload.write(CONTENT + b"x")
    upload.close()
    assert list(folder.iterdir()) == []


def test_bad_archive_leaves_nothing(uploads: Uploads, folder: Path) -> None:
    def refuse(_: Path) -> str:
        raise DataError("the archive holds one class")

    upload = uploads.begin(plan(str(uuid.uuid4())))
    upload.open(free)
    upload.write(CONTENT)
    with pytest.raises(DataError, match="one class"):
        upload.finish(refuse)
    upload.close()
    assert list(folder.iterdir()) == []


def test_taken_name_is_refused_before_the_bytes(uploads: Uploads, folder: Path) -> None:
    def taken(name: str) -> None:
        raise AlreadyExistsError(f"datasets/{name} exists")

    upload = uploads.begin(plan(str(uuid.uuid4())))
    with pytest.raises(AlreadyExistsError):
        upload.open(taken)
    upload.close()
    assert list(folder.iterdir()) == []


def test_wrong_offset_keeps_what_arrived(uploads: Uploads) -> None:
    request_id = str(uuid.uuid4())
    first = uploads.begin(plan(request_id))
    first.open(free)
    first.write(CONTENT[:3000])
    first.close()
    second = uploads.begin(plan(request_id, offset=2000))
    with pytest.raises(FailedPreconditionError, match="got 2000, expected 0 or 3000"):
        second.open(free)
    second.close()
    assert uploads.query(request_id) == (3000, "")


def test_same_id_for_another_upload(uploads: Uploads) -> None:
    request_id = str(uuid.uuid4())
    first = uploads.begin(plan(request_id))
    first.open(free)
    first.write(CONTENT[:3000])
    first.close()
    second = uploads.begin(plan(request_id, resource_id="other"))
    with pytest.raises(InvalidArgumentError, match=r"header\.request_id: .*a new UUID"):
        second.open(free)
    second.close()
    assert uploads.query(request_id) == (3000, "")


def test_two_at_once_with_one_id(uploads: Uploads) -> None:
    request_id = str(uuid.uuid4())
    first = uploads.begin(plan(request_id))
    with pytest.raises(AbortedError):
        uploads.begin(plan(request_id))
    first.close()
    uploads.begin(plan(request_id)).close()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size_bytes": 0}, InvalidArgumentError),
        ({"size_bytes": 1_000_001}, ResourceExhaustedError),
        ({"sha256": "abc"}, InvalidArgumentError),
        ({"offset_bytes": -1}, InvalidArgumentError),
        ({"offset_bytes": len(CONTENT) + 1}, InvalidArgumentError),
    ],
)
def test_header_is_checked(
    uploads: Uploads, folder: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"header\.") as info:
        uploads.begin(plan(**changes))
    assert info.value.fields  # type: ignore[attr-defined]
    assert list(folder.iterdir()) == []


def test_no_room_on_the_disk(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    upload = uploads.begin(plan())
    with pytest.raises(ResourceExhaustedError, match="100 bytes left") as info:
        upload.open(free)
    upload.close()
    assert info.value.retry_delay_s


def test_disk_full_while_unpacking_keeps_the_part(uploads: Uploads) -> None:
    def full(_: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    request_id = str(uuid.uuid4())
    upload = uploads.begin(plan(request_id))
    upload.open(free)
    upload.write(CONTENT)
    with pytest.raises(ResourceExhaustedError, match="disk is full"):
        upload.finish(full)
    upload.close()
    assert uploads.query(request_id) == (len(CONTENT), "")
    retry = uploads.begin(plan(request_id, offset=len(CONTENT)))
    retry.open(free)
    assert retry.finish(make) == "datasets/pets"
    retry.close()


def test_old_requests_are_forgotten(uploads: Uploads, folder: Path) -> None:
    old, new, busy = (str(uuid.uuid4()) for _ in range(3))
    for request_id in (old, new, busy):
        upload = uploads.begin(plan(request_id))
        upload.open(free)
        upload.write(CONTENT[:10])
        upload.close()
    running = uploads.begin(plan(busy))
    long_ago = time.time() - 4000
    for request_id in (old, busy):
        os.utime(folder / f"{request_id}.json", (long_ago, long_ago))
    assert uploads.clean() == 1
    running.close()
    assert uploads.query(old) == (0, "")
    assert uploads.query(new) == uploads.query(busy) == (10, "")
    assert not (folder / f"{old}.part").exists()


def test_parts_of_a_dead_process_are_removed(folder: Path) -> None:
    folder.mkdir()
    (folder / "once-1.part").write_bytes(b"x")
    Uploads(RequestLedger(folder, ttl_s=10), max_bytes=10).remove_leftovers()
    assert list(folder.iterdir()) == []
