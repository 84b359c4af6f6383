"""What a client is told of an exception."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from pyserve import errors
from pyserve.server.status import error_status, reason, strike_paths


def details(status: Any, kind: Any) -> Any:
    found = kind()
    return next((found for any_message in status.details if any_message.Unpack(found)), None)


@pytest.mark.parametrize("cls", errors.STATUS_NAMES)
def test_every_error_has_code_reason_and_request(cls: type[errors.PyserveError]) -> None:
    status = error_status(cls("a sentence", metadata={"limit": "3"}), "r1")
    info = details(status, error_details_pb2.ErrorInfo)
    assert status.code == grpc.StatusCode[errors.STATUS_NAMES[cls]].value[0]
    assert status.message == "a sentence"
    assert (info.reason, info.domain) == (reason(cls("")), "pyserve")
    assert dict(info.metadata) == {"limit": "3", "request_id": "r1"}
    assert info.reason == info.reason.upper()


def test_reason_spelling() -> None:
    assert reason(errors.FailedPreconditionError("")) == "FAILED_PRECONDITION"
    assert reason(errors.DataError("")) == "DATA"


def test_fields_and_retry_delay() -> None:
    error = errors.InvalidArgumentError.field("train.epochs", -1, "≥ 1")
    error.retry_delay_s = 1.5
    status = error_status(error, "r1")
    violations = details(status, error_details_pb2.BadRequest).field_violations
    assert [(v.field, v.description) for v in violations] == [("train.epochs", "got -1, expected ≥ 1")]
    assert details(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500


def test_foreign_exceptions_tell_nothing() -> None:
    status = error_status(RuntimeError("secret at /srv/pyserve"), "r1")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert status.message == "internal error; see the server's log for request r1"
    assert b"secret" not in status.SerializeToString()


def test_server_paths_are_struck_out(tmp_path: Path) -> None:
    error = errors.InvalidArgumentError.field("x", f"{tmp_path}/uploads/1.part", "an archive")
    status = error_status(error, "r1", [tmp_path])
    assert str(tmp_path).encode() not in status.SerializeToString()
    assert "'uploads/1.part'" in status.message
    assert strike_paths(f"in {tmp_path}", [tmp_path]) == "in the server's folder"


def test_long_errors_fit_into_the_trailers() -> None:
    violations = tuple(errors.FieldViolation(f"field{i}", "≥" * 5000) for i in range(500))
    status = error_status(errors.DataError("≥" * 100_000, fields=violations), "r1")
    # The text is percent-encoded, the details are base64; peers refuse trailers above 8 KiB.
    assert len(status.message.encode()) * 3 + len(status.SerializeToString()) * 4 / 3 < 8000


def sqlite_full(folder: Path) -> None:
    with sqlite3.connect(folder / "x.sqlite3") as connection:
        connection.execute("PRAGMA max_page_count = 3")
        connection.execute("CREATE TABLE t (x)")
        for _ in range(100):
            connection.execute("INSERT INTO t VALUES (zeroblob(1000))")


def sqlite_read_only(folder: Path) -> None:
    (folder / "x.sqlite3").touch()
    with sqlite3.connect(f"file:{folder}/x.sqlite3?mode=ro", uri=True) as connection:
        connection.execute("CREATE TABLE t (x)")


def sqlite_damaged(folder: Path) -> None:
    (folder / "x.sqlite3").write_bytes(b"hello" * 1000)
    with sqlite3.connect(folder / "x.sqlite3") as connection:
        connection.execute("SELECT * FROM sqlite_master")


def file_full(folder: Path) -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def raise_(error: Exception) -> Any:
    def call(folder: Path) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (sqlite_full, "RESOURCE_EXHAUSTED", "the server's disk is full"),
        (file_full, "RESOURCE_EXHAUSTED", "the server's disk is full"),
        (sqlite_read_only, "FAILED_PRECONDITION", "data folder cannot be written"),
        (sqlite_damaged, "DATA_LOSS", "job store is damaged"),
        (raise_(PermissionError(13, "x", "/srv/secret")), "FAILED_PRECONDITION", "data folder cannot be written"),
        (raise_(OSError(24, "Too many open files")), "RESOURCE_EXHAUSTED", "no file descriptors left"),
        (raise_(MemoryError()), "RESOURCE_EXHAUSTED", "the server's memory is full"),
        (raise_(OSError(5, "Input/output error")), "INTERNAL", "internal error"),
        (raise_(sqlite3.OperationalError("database is locked")), "INTERNAL", "internal error"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_faults_of_the_machine_are_told_as_what_they_are(
    tmp_path: Path, fault: Any, code: str, words: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever the system raises
        fault(tmp_path)
    status = error_status(caught.value, "r1")
    assert status.code == grpc.StatusCode[code].value[0], caught.value
    assert words in status.message
    assert b"secret" not in status.SerializeToString()
