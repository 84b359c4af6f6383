"""`google.rpc.Status` back into exceptions: what the server raised, the client raises again."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from pyserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    PyserveError,
    UnavailableError,
    error_class,
)

_DETAILS_KEY = "grpc-status-details-bin"
_STATUS_BY_NUMBER = {status.value[0]: status for status in grpc.StatusCode}


def error_from_status(status: status_pb2.Status) -> PyserveError:
    """The exception that a status stands for, such as `Job.error`, with its fields, delay and metadata."""
    fields: tuple[FieldViolation, ...] = ()
    retry_delay_s: float | None = None
    metadata: dict[str, str] = {}
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            metadata = dict(info.metadata)
        elif detail.Unpack(bad_request):
            fields = tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations)
        elif detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToNanoseconds() / 1e9
    code = _STATUS_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return error_class(code.name)(status.message, fields=fields, retry_delay_s=retry_delay_s, metadata=metadata)


def error_from_rpc(error: grpc.RpcError, address: str, timeout_s: float | None) -> PyserveError:
    """The exception for a failed call, of grpc or grpc.aio.

    Args:
        address: the server that was called, for the sentence.
        timeout_s: the call's time limit, for the sentence.
    """
    code, text = error.code(), error.details() or ""
    trailers: Any = error.trailing_metadata()  # grpc's types know only a single pair
    details = next((value for key, value in trailers or () if key == _DETAILS_KEY), None)
    if details is not None:
        return error_from_status(status_pb2.Status.FromString(details))
    # Without details the status is gRPC's own: the server was not reached or said nothing of its own.
    metadata = {"cause": text}
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unreachable(text, address)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        limit = "in time" if timeout_s is None else f"within {timeout_s:.3g} s"
        return DeadlineExceededError(f"no answer from {address} {limit}", metadata=metadata)
    return error_class(code.name)(f"{address} answers {code.name}: {text}", metadata=metadata)


def _unreachable(cause: str, address: str) -> PyserveError:
    """No connection: nobody is there, or somebody with whom no TLS connection comes about."""
    metadata = {"cause": cause}
    if "CERTIFICATE_VERIFY_FAILED" in cause or "Hostname Verification" in cause:
        return FailedPreconditionError(
            f"the certificate of {address} is not one to trust here: name its authority (ca, --ca, PYSERVE_CA), "
            "and address the server by a name in its certificate (or server_name, PYSERVE_SERVER_NAME)",
            metadata=metadata,
        )
    if "WRONG_VERSION_NUMBER" in cause:
        return FailedPreconditionError(
            f"{address} does not speak TLS: leave ca, cert and tls out (--ca, PYSERVE_CA, …)", metadata=metadata
        )
    hint = "" if "refused" in cause else "; one with TLS wants --ca, and perhaps --cert and --key"
    return UnavailableError(
        f"no pyserve server answers at {address}; start one with `pyserve serve`, or name another address "
        f"(--address, PYSERVE_ADDRESS){hint}",
        metadata=metadata,
    )
