"""Uploads that survive a broken connection: part files under a request's id, checked and then handed over."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pyserve.errors import (
    AbortedError,
    AlreadyExistsError,
    DataError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    is_disk_full,
)
from pyserve.server.ledger import Entry, RequestLedger

MAX_CHUNK_BYTES = 4 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_DISK_RETRY_S = 60.0
UPLOAD = "Upload"


@dataclass(frozen=True)
class UploadPlan:
    """What is about to be sent: the header of an upload.

    `resource_id` is the name part of what is made of it, in the call `call`. `request_id` "" means that nothing is
    kept when the upload breaks.
    """

    resource_id: str
    size_bytes: int
    sha256: str
    request_id: str
    offset_bytes: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    call: str = UPLOAD

    def request(self) -> dict[str, Any]:
        """The facts that a retry must repeat."""
        return {name: value for name, value in asdict(self).items() if name not in ("request_id", "offset_bytes")}

    def check(self, max_bytes: int) -> None:
        """Refuse what can be refused before a byte is sent."""
        if self.size_bytes < 1:
            raise InvalidArgumentError.field("header.size_bytes", self.size_bytes, "≥ 1")
        if self.size_bytes > max_bytes:
            raise ResourceExhaustedError.field(
                "header.size_bytes",
                self.size_bytes,
                f"≤ {max_bytes}, the server's max_archive_bytes",
                metadata={"limit_bytes": str(max_bytes)},
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InvalidArgumentError.field("header.sha256", self.sha256, "64 hexadecimal digits")
        if not 0 <= self.offset_bytes <= self.size_bytes:
            raise InvalidArgumentError.field("header.offset_bytes", self.offset_bytes, f"0 to {self.size_bytes}")


class Uploads:
    """All uploads under way or broken.

    Args:
        ledger: remembers them; the part files lie in its folder.
        max_bytes: largest archive taken in.
    """

    def __init__(self, ledger: RequestLedger, max_bytes: int) -> None:
        self._ledger = ledger
        self._max_bytes = max_bytes

    def remove_leftovers(self) -> None:
        """Remove parts without an id: they belonged to calls of a process that is gone. Before the first call."""
        for path in self._ledger.folder.glob("once-*.part"):
            path.unlink(missing_ok=True)

    def begin(self, plan: UploadPlan) -> Upload:
        """An upload that no other call can enter until its `close`.

        Raises:
            InvalidArgumentError, ResourceExhaustedError: for a header that cannot be served.
            AbortedError: where another call sends the same upload.
        """
        plan.check(self._max_bytes)
        return Upload(self._ledger, plan)

    def query(self, request_id: str) -> tuple[int, str]:
        """Bytes that are kept of an upload, and the dataset that came out of it ("" while none has)."""
        entry = self._ledger.find(request_id)
        if entry is None or entry.call != UPLOAD:
            return 0, ""
        return _size(self._ledger.folder / f"{request_id}.part"), entry.result

    def clean(self) -> int:
        """Forget requests whose time is over and remove their parts; how many there were."""
        count = 0
        for request_id in self._ledger.expired():
            try:
                with self._ledger.hold(request_id):
                    (self._ledger.folder / f"{request_id}.part").unlink(missing_ok=True)
                    self._ledger.forget(request_id)
                    count += 1
            except AbortedError:
                continue  # it is being sent at this moment
        return count


class Upload:
    """One upload under way. Its methods block and may run in any thread, one at a time."""

    def __init__(self, ledger: RequestLedger, plan: UploadPlan) -> None:
        self._ledger = ledger
        self._plan = plan
        self._key = plan.request_id or f"once-{uuid.uuid4()}"
        self._part = ledger.folder / f"{self._key}.part"
        self._hash = hashlib.sha256()
        self._received = 0
        self._file: BinaryIO | None = None
        self._opened = False
        self._refused = False
        self._result = ""
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._stack.enter_context(ledger.hold(self._key))

    def open(self, ensure_free: Callable[[str], None]) -> str:
        """Make ready for the bytes from the plan's offset on.

        Args:
            ensure_free: raises AlreadyExistsError where the resource id is taken.

        Returns:
            "" to go on, or the name of what an earlier call with this request id made.

        Raises:
            FailedPreconditionError: where the offset is neither 0 nor what has arrived.
            ResourceExhaustedError: where the disk has no room.
        """
        with self._lock, self._refusing():
            if self._plan.request_id:
                entry = Entry(self._plan.call, self._plan.request())
                self._result = self._ledger.open(self._key, entry, "header.request_id").result
            self._opened = True
            if self._result:
                return self._result
            ensure_free(self._plan.resource_id)
            self._seek()
            self._check_disk()
            return ""

    def write(self, chunk: bytes) -> None:
        """Append the next bytes."""
        with self._lock, self._refusing():
            total = self._received + len(chunk)
            if total > self._plan.size_bytes:
                raise DataError.field(
                    "header.size_bytes", self._plan.size_bytes, f"at least the {total} bytes sent"
                )
            file = self._opened_file()
            file.write(chunk)
            file.flush()  # what QueryUpload counts must survive a crash of this process
            self._hash.update(chunk)
            self._received = total

    def finish(self, make: Callable[[Path], str]) -> str:
        """Check the archive and make of it what it is for.

        Args:
            make: given the archive's path, makes the resource and tells its name.

        Raises:
            InvalidArgumentError: where bytes are missing; what has arrived stays resumable.
            DataError: where the checksum is wrong; nothing is kept.
        """
        with self._lock:
            if self._received < self._plan.size_bytes:
                hint = f"; go on from offset_bytes {self._received}" if self._plan.request_id else ""
                raise InvalidArgumentError.field(
                    "header.size_bytes", self._plan.size_bytes, f"the {self._received} bytes that were sent{hint}"
                )
            with self._refusing():
                if self._hash.hexdigest() != self._plan.sha256:
                    expected = f"{self._hash.hexdigest()}, the SHA-256 of the bytes that arrived"
                    raise DataError.field("header.sha256", self._plan.sha256, expected)
                self._result = make(self._part)
            if self._plan.request_id:
                self._ledger.finish(self._key, self._result)
            return self._result

    def close(self) -> None:
        """Let go of the upload: what is worth resuming stays, all else goes."""
        with self._lock, self._stack:
            if self._file is not None:
                self._close_file(self._file)
                self._file = None
            if not self._opened:
                return
            if self._result or self._refused or not self._plan.request_id:
                self._part.unlink(missing_ok=True)
            if self._refused:
                self._ledger.forget(self._key)
            elif self._plan.request_id:
                self._ledger.touch(self._key)

    def _opened_file(self) -> BinaryIO:
        if self._file is None:
            raise InternalError("an upload was written to before it was opened or after it was closed")
        return self._file

    def _seek(self) -> None:
        arrived, offset = _size(self._part), self._plan.offset_bytes
        if offset not in (0, arrived):
            raise FailedPreconditionError.field(
                "header.offset_bytes", offset, f"0 or {arrived}, the bytes that have arrived (see QueryUpload)"
            )
        with self._part.open("ab") as file:
            file.truncate(offset)
        with self._part.open("rb") as file:
            while block := file.read(_READ_BYTES):
                self._hash.update(block)
        self._received = offset
        self._file = self._part.open("ab")

    def _check_disk(self) -> None:
        needed = self._plan.size_bytes - self._received
        free = shutil.disk_usage(self._ledger.folder).free
        if needed > free:
            raise ResourceExhaustedError(
                f"the server's disk has {free} bytes left, the upload needs {needed}",
                retry_delay_s=_DISK_RETRY_S,
                metadata={"free_bytes": str(free)},
            )

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Mark the upload as not worth resuming where its content is at fault; a full disk is not its fault."""
        try:
            yield
        except (InvalidArgumentError, AlreadyExistsError):
            self._refused = self._opened
            raise
        except OSError as error:
            if is_disk_full(error):
                raise ResourceExhaustedError(
                    "the server's disk is full", retry_delay_s=_DISK_RETRY_S, metadata={"limit": "disk"}
                ) from error
            raise

    @staticmethod
    def _close_file(file: BinaryIO) -> None:
        try:
            file.close()
        except OSError as error:  # bytes that a full disk did not take; the size on disk tells what arrived
            if not is_disk_full(error):
                raise


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
