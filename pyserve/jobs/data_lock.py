"""The data folder: made if missing, and one server's at a time by a locked file that tells who has it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from pyserve.errors import FailedPreconditionError

_LOCK = "server.lock"


def make_data_dir(data_dir: Path) -> None:
    """Make the folder if it is missing.

    Raises:
        FailedPreconditionError: it cannot be made, or not be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(data_dir, error) from None
    check_data_dir(data_dir)


def check_data_dir(data_dir: Path) -> None:
    """Whether the folder can be written, or made where it is missing; changes nothing.

    Raises:
        FailedPreconditionError: it cannot.
    """
    folder = data_dir
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise _not_writable(data_dir, OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise _not_writable(data_dir, OSError(number, os.strerror(number)))


def owner_of(data_dir: Path) -> str:
    """The process whose server has the folder; "" where none does."""
    try:
        file = os.open(data_dir / _LOCK, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back below, before a server could miss it
    except BlockingIOError:
        return os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(file)
    return ""


def _not_writable(data_dir: Path, error: OSError) -> FailedPreconditionError:
    problem = (error.strerror or str(error)).lower()
    return FailedPreconditionError(f"data_dir {data_dir} cannot be written: {problem}")


class DataLock:
    """An exclusive lock on a data folder, which ends with the process that holds it, however that ends.

    Args:
        data_dir: the folder, made if missing.

    Raises:
        FailedPreconditionError: another server has it; tells its process.
    """

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._file = os.open(data_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._file, 32, 0).decode(errors="replace").strip()
            os.close(self._file)
            process = f" (process {owner})" if owner else ""
            raise FailedPreconditionError(
                f"data_dir {data_dir} is in use by another server{process}: stop it, or choose another data_dir"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Give the folder free."""
        os.close(self._file)
