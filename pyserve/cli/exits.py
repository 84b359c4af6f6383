"""Exit codes, and how errors are told."""

from __future__ import annotations

import json
import sys

from pyserve.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PyserveError,
    UnauthenticatedError,
    UnavailableError,
    status_name,
)

FAILURE = 1
INTERRUPTED = 130
_CODES: dict[type[PyserveError], int] = {
    InvalidArgumentError: 2,
    NotFoundError: 3,
    FailedPreconditionError: 4,
    AlreadyExistsError: 4,
    UnavailableError: 5,
    UnauthenticatedError: 6,
    PermissionDeniedError: 6,
}
EXIT_CODES = (
    "Exit codes: 0 done · 1 the job failed or the server had an error · 2 wrong usage or an invalid argument · "
    "3 not found · 4 not possible in this state, or exists already · 5 server unavailable · "
    "6 no token, or not allowed · 130 Ctrl-C."
)


def exit_code(error: PyserveError) -> int:
    """The exit code that stands for an error."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILURE)


def print_error(error: PyserveError, *, as_json: bool) -> None:
    """Tell an error on stderr: one sentence, or one JSON object with code, message and fields."""
    if not as_json:
        print(f"pyserve: {error.message}", file=sys.stderr)
        return
    fields = [{"field": v.field, "description": v.description} for v in error.fields]
    facts = {"code": status_name(error), "message": error.message, "fields": fields, "metadata": error.metadata}
    print(json.dumps({"error": facts}, ensure_ascii=False), file=sys.stderr)
