"""The data folder: made if missing, and one server's at a time by a locked file that tells who has it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from pyserve.errors import FailedPreconditionError


def make_data_dir(data_dir: Path) -> None:
    """Make the folder if it is missing.

    Raises:
        FailedPreconditionError: it cannot be made, or not be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(data_dir, os.W_OK | os.X_OK):
            read_only = os.statvfs(data_dir).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number))
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise FailedPreconditionError(f"data_dir {data_dir} cannot be written: {problem}") from None


class DataLock:
    """An exclusive lock on a data folder, which ends with the process that holds it, however that ends.

    Args:
        data_dir: the folder, made if missing.

    Raises:
        FailedPreconditionError: another server has it; tells its process.
    """

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._file = os.open(data_dir / "server.lock", os.O_RDWR | os.O_CREAT, 0o644)
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
