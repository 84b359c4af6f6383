"""Exceptions as `google.rpc.Status`: what a client is told of an error, and nothing more."""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from pyserve.errors import (
    DataLossError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    PyserveError,
    ResourceExhaustedError,
    is_disk_full,
    status_name,
)

log = logging.getLogger(__name__)

DOMAIN = "pyserve"
# A status travels in HTTP/2 trailers, twice (as text, percent-encoded to at most three times its size, and in
# the details as base64); peers refuse trailers above 8 KiB and would show that instead of the error.
MAX_MESSAGE_BYTES = 1000
MAX_VIOLATIONS = 8
MAX_VALUE_BYTES = 200
_DISK_RETRY_S = 60.0


class StatusTeller:
    """Tells clients of errors, and the log what they are not told.

    Args:
        private_paths: folders of the server that no error sentence may show.
    """

    def __init__(self, private_paths: Sequence[Path] = ()) -> None:
        self._private_paths = tuple(private_paths)

    def tell(self, error: BaseException, method: str, request_id: str) -> status_pb2.Status:
        """What the client is told; the log gets the rest under the request's id."""
        known = isinstance(error, PyserveError)
        log.log(
            logging.INFO if known else logging.ERROR,
            "error method=%s request_id=%s: %s",
            method,
            request_id,
            error,
            exc_info=None if known else error,
        )
        return error_status(error, request_id, self._private_paths)


def reason(error: PyserveError) -> str:
    """The error's class as `ErrorInfo.reason`: `NotFoundError` → `NOT_FOUND`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).upper()


def error_status(error: BaseException, request_id: str, private_paths: Sequence[Path] = ()) -> status_pb2.Status:
    """What the client is told.

    Args:
        error: any exception; one that is not ours becomes an InternalError that names only the request.
        request_id: under which the log has the details.
        private_paths: folders of the server whose paths are struck out of sentences.
    """
    if not isinstance(error, PyserveError):
        error = _of_the_machine(error) or InternalError(
            f"internal error; see the server's log for request {request_id}"
        )
    message = shorten(strike_paths(error.message, private_paths), MAX_MESSAGE_BYTES)
    code = grpc.StatusCode[status_name(error)].value[0]
    metadata = {name: shorten(value, MAX_VALUE_BYTES) for name, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(
        reason=reason(error), domain=DOMAIN, metadata={**metadata, "request_id": request_id}
    )
    details = [_pack(info)]
    if error.fields:
        details.append(_pack(_bad_request(error.fields, private_paths)))
    if error.retry_delay_s is not None:
        details.append(_pack(_retry_info(error.retry_delay_s)))
    return status_pb2.Status(code=code, message=message, details=details)


def _of_the_machine(error: BaseException) -> PyserveError | None:
    """What the server's machine lacks, where that is the reason: room, memory, or a folder that can be written."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error) if isinstance(error, sqlite3.Error) else ""
    if is_disk_full(error):
        return ResourceExhaustedError(
            "the server's disk is full", retry_delay_s=_DISK_RETRY_S, metadata={"limit": "disk"}
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly database" in text:
        return FailedPreconditionError("the server's data folder cannot be written; its operator must see to it")
    if number in (errno.EMFILE, errno.ENFILE):
        return ResourceExhaustedError(
            "the server has no file descriptors left", retry_delay_s=1.0, metadata={"limit": "descriptors"}
        )
    if isinstance(error, MemoryError):
        return ResourceExhaustedError(
            "the server's memory is full", retry_delay_s=1.0, metadata={"limit": "memory"}
        )
    if "malformed" in text or "not a database" in text:
        return DataLossError("the server's job store is damaged; its operator must see to it")
    return None


def strike_paths(text: str, private_paths: Sequence[Path]) -> str:
    """The text with the given folders, and the slash after them, left out."""
    for path in private_paths:
        for spelling in {str(path.resolve()), str(path)}:
            if len(spelling) > 1:
                text = text.replace(f"{spelling}/", "").replace(spelling, "the server's folder")
    return text


def shorten(text: str, limit: int) -> str:
    """The text, cut where its UTF-8 form is longer than `limit` bytes."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return f"{encoded[:limit].decode(errors='ignore')}… ({len(text)} characters)"


def _bad_request(fields: Sequence[FieldViolation], private_paths: Sequence[Path]) -> error_details_pb2.BadRequest:
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field=v.field,
            description=shorten(strike_paths(v.description, private_paths), MAX_VALUE_BYTES),
        )
        for v in fields[:MAX_VIOLATIONS]
    ]
    return error_details_pb2.BadRequest(field_violations=violations)


def _retry_info(delay_s: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(delay_s * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _pack(message: object) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
