"""What was asked for under which `request_id`, so that a retried call returns the first result."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pyserve.errors import AbortedError, InvalidArgumentError


@dataclass(frozen=True)
class Entry:
    """One request: the call, what it asked for, and the resource that came out ("" while none has)."""

    call: str
    request: dict[str, Any]
    result: str = ""


class RequestLedger:
    """Requests on disk, one small JSON file each, forgotten after `ttl_s` without a change.

    Args:
        folder: where the files lie; made if missing.
        ttl_s: how long a request is remembered, seconds.
    """

    def __init__(self, folder: Path, ttl_s: float) -> None:
        self.folder = folder
        self._ttl_s = ttl_s
        self._held: set[str] = set()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def hold(self, request_id: str) -> Iterator[None]:
        """Keep every other call with this id out for as long as the block runs.

        Raises:
            AbortedError: where another call with the same id runs.
        """
        with self._lock:
            if request_id in self._held:
                raise AbortedError(
                    f"another call with request_id {request_id} is running: wait for it, or use a new id",
                    retry_delay_s=1.0,
                )
            self._held.add(request_id)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(request_id)

    def once(self, request_id: str, entry: Entry, make: Callable[[], str]) -> str:
        """The result of an earlier call with this request id, or else that of `make`; "" asks for no memory.

        Raises:
            AbortedError: another call with the same id runs.
            InvalidArgumentError: the id was used for something else.
        """
        if not request_id:
            return make()
        with self.hold(request_id):
            known = self.open(request_id, entry)
            if known.result:
                return known.result
            try:
                result = make()
            except BaseException:
                self.forget(request_id)
                raise
            self.finish(request_id, result)
            return result

    def open(self, request_id: str, entry: Entry, field: str = "request_id") -> Entry:
        """Remember a request, or find what is remembered of it. Only inside `hold`.

        Raises:
            InvalidArgumentError: where the id was used for something else.
        """
        known = self.find(request_id)
        if known is None:
            self._write(request_id, entry)
            return entry
        if (known.call, known.request) != (entry.call, entry.request):
            raise InvalidArgumentError.field(
                field, request_id, "a new UUID: this one was used for another request"
            )
        return known

    def finish(self, request_id: str, result: str) -> None:
        """Record what came out of a request."""
        entry = self.find(request_id)
        if entry is not None:
            self._write(request_id, replace(entry, result=result))

    def find(self, request_id: str) -> Entry | None:
        """What is remembered under an id."""
        try:
            return Entry(**json.loads(self._path(request_id).read_text()))
        except FileNotFoundError:
            return None

    def forget(self, request_id: str) -> None:
        """Remember nothing of a request any more."""
        self._path(request_id).unlink(missing_ok=True)

    def touch(self, request_id: str) -> None:
        """Begin a request's time anew."""
        self._path(request_id).touch()

    def expired(self) -> list[str]:
        """Ids whose time is over."""
        limit = time.time() - self._ttl_s
        return [path.stem for path in self.folder.glob("*.json") if path.stat().st_mtime < limit]

    def _write(self, request_id: str, entry: Entry) -> None:
        path = self._path(request_id)
        temporary = path.with_suffix(".json.tmp")
        with temporary.open("w") as file:
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _path(self, request_id: str) -> Path:
        return self.folder / f"{request_id}.json"
