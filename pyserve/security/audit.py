"""The audit log: who did what to which resource, and what came of it, one JSON object a line, bounded in size."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path

from pyserve.errors import FailedPreconditionError
from pyserve.security.limits import RateLimit

log = logging.getLogger(__name__)

REFUSALS_PER_S = 20.0
_KEPT_FILES = 10
_LONGEST_VALUE = 300


class AuditLog:
    """Writes the lines. Belongs to one event loop.

    Refused calls cost their sender nothing, so only `REFUSALS_PER_S` of them are written each second; how many
    were left out is told by the next one. All other calls are written one by one.

    Args:
        path: the file; full ones become `path.1` to `path.10`.
        max_bytes: where a file is full, bytes.
    """

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _Lines(path, maxBytes=max_bytes, backupCount=_KEPT_FILES, encoding="utf-8")
        except OSError as error:
            raise FailedPreconditionError(f"audit_log {path} cannot be written: {error.strerror}") from error
        path.chmod(0o600)
        self._refusals = RateLimit(REFUSALS_PER_S, REFUSALS_PER_S, clock)
        self._left_out = 0

    def write(self, facts: Mapping[str, object], *, refused: bool = False) -> None:
        """Write one line.

        Args:
            facts: those that are "" or None are left out, long texts are cut.
            refused: the call was turned away before it began.
        """
        if refused and self._refusals.delay_s(""):
            self._left_out += 1
            return
        line: dict[str, object] = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
        if refused and self._left_out:
            line["left_out"] = self._left_out
            self._left_out = 0
        line |= {
            name: value[:_LONGEST_VALUE] if isinstance(value, str) else value
            for name, value in facts.items()
            if value not in ("", None)
        }
        self._file.emit(logging.makeLogRecord({"msg": json.dumps(line, ensure_ascii=False)}))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Lines(RotatingFileHandler):
    """A line that cannot be written is an error of this server, and no reason to fail a call that is done."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        log.exception("the audit log cannot be written: %s", record.msg)
