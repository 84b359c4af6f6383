"""Every exception of pyserve, and the one table that maps them to gRPC status codes.

    PyserveError
    ├── InvalidArgumentError        a value is wrong whatever the state of the system; names the field
    │   └── DataError               pictures, archives or folders that cannot be used
    ├── NotFoundError               a named resource does not exist; names what exists
    ├── AlreadyExistsError          a resource of that name exists
    ├── FailedPreconditionError     right call, wrong state; says what to do first
    ├── ResourceExhaustedError      a limit was reached; says which, and when to try again
    ├── UnauthenticatedError        the caller has not said who it is, or not so that it can be believed
    ├── PermissionDeniedError       the caller may not do this
    ├── DeadlineExceededError       the caller's deadline passed
    ├── CancelledError              the caller or a user cancelled the work
    ├── UnavailableError            the service cannot answer at present (draining, unreachable); try again
    ├── UnimplementedError          the other side does not know this call
    ├── AbortedError                a concurrent change got in between; start the sequence again
    ├── DataLossError               something stored is damaged
    └── InternalError               a fault of pyserve itself; the log has the details

Server and client share this module: what the server raises, the client raises again.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TypeVar

E = TypeVar("E", bound="PyserveError")
_LONGEST_SHOWN = 500  # characters of a wrong value that a sentence repeats


@dataclass(frozen=True)
class FieldViolation:
    """One request field and what is wrong with it (`google.rpc.BadRequest.FieldViolation`)."""

    field: str
    description: str


class PyserveError(Exception):
    """Base of all errors of pyserve.

    Args:
        message: one sentence for the user: what it got, what it expected.
        fields: the request fields to blame, if any.
        retry_delay_s: after how many seconds trying again makes sense; None where it does not.
        metadata: further facts as strings (a limit, a resource name), sent as `google.rpc.ErrorInfo.metadata`.
    """

    def __init__(
        self,
        message: str,
        *,
        fields: tuple[FieldViolation, ...] = (),
        retry_delay_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields
        self.retry_delay_s = retry_delay_s
        self.metadata = metadata or {}

    @classmethod
    def field(
        cls: type[E],
        name: str,
        got: object,
        expected: str,
        *,
        retry_delay_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> E:
        """The house's sentence for one field to blame: `train.epochs: got -1, expected ≥ 1`."""
        description = f"got {_shown(got)}, expected {expected}"
        return cls(
            f"{name}: {description}",
            fields=(FieldViolation(name, description),),
            retry_delay_s=retry_delay_s,
            metadata=metadata,
        )

    def under(self: E, prefix: str) -> E:
        """The same error of a field inside `prefix`: `epochs: got …` under "train" is `train.epochs: got …`."""
        if not self.fields:
            return self
        return type(self)(
            f"{prefix}.{self.message}",
            fields=tuple(FieldViolation(f"{prefix}.{v.field}", v.description) for v in self.fields),
            retry_delay_s=self.retry_delay_s,
            metadata=self.metadata,
        )


def _shown(got: object) -> str:
    """What came, cut where it is long: a name of megabytes must not fill a log."""
    text = repr(got[:_LONGEST_SHOWN] if isinstance(got, str | bytes) else got)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


class InvalidArgumentError(PyserveError):
    """A value is wrong whatever the state of the system."""


class DataError(InvalidArgumentError):
    """Pictures, archives or folders that cannot be used."""


class NotFoundError(PyserveError):
    """A named resource does not exist."""


class AlreadyExistsError(PyserveError):
    """A resource of that name exists already."""


class FailedPreconditionError(PyserveError):
    """The call is right but the system is not in the state for it."""


class ResourceExhaustedError(PyserveError):
    """A limit was reached."""


class UnauthenticatedError(PyserveError):
    """The caller has not said who it is, or not so that it can be believed."""


class PermissionDeniedError(PyserveError):
    """The caller may not do this."""


class DeadlineExceededError(PyserveError):
    """The caller's deadline passed."""


class CancelledError(PyserveError):
    """The caller or a user cancelled the work."""


class UnavailableError(PyserveError):
    """The service cannot answer at present."""


class UnimplementedError(PyserveError):
    """The other side does not know this call."""


class AbortedError(PyserveError):
    """A concurrent change got in between."""


class DataLossError(PyserveError):
    """Something stored is damaged."""


class InternalError(PyserveError):
    """A fault of pyserve itself."""


# Exception class → name of the gRPC status code (`grpc.StatusCode[name]`), most special class first.
# DataError shares INVALID_ARGUMENT; a client that receives that code raises InvalidArgumentError.
STATUS_NAMES: dict[type[PyserveError], str] = {
    DataError: "INVALID_ARGUMENT",
    InvalidArgumentError: "INVALID_ARGUMENT",
    NotFoundError: "NOT_FOUND",
    AlreadyExistsError: "ALREADY_EXISTS",
    FailedPreconditionError: "FAILED_PRECONDITION",
    ResourceExhaustedError: "RESOURCE_EXHAUSTED",
    UnauthenticatedError: "UNAUTHENTICATED",
    PermissionDeniedError: "PERMISSION_DENIED",
    DeadlineExceededError: "DEADLINE_EXCEEDED",
    CancelledError: "CANCELLED",
    UnavailableError: "UNAVAILABLE",
    UnimplementedError: "UNIMPLEMENTED",
    AbortedError: "ABORTED",
    DataLossError: "DATA_LOSS",
    InternalError: "INTERNAL",
}


def status_name(error: BaseException) -> str:
    """The gRPC status code name of an exception; INTERNAL for one that is not ours."""
    for cls in type(error).__mro__:
        if cls in STATUS_NAMES:
            return STATUS_NAMES[cls]
    return "INTERNAL"


def error_class(status: str) -> type[PyserveError]:
    """The exception class that a client raises for a gRPC status code name."""
    for cls, name in STATUS_NAMES.items():
        if name == status and cls is not DataError:
            return cls
    return InternalError


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk without room is the reason, whoever met it: the system, SQLite or safetensors."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return "disk is full" in text or "No space left on device" in text or "Disk quota exceeded" in text
