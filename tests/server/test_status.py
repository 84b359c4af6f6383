"""What a client is told of an exception."""

from __future__ import annotations

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
