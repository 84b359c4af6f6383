"""Decoded pictures on disk, shared by all jobs: each array is made once, and is there as a whole or not at all.

    <cache_dir>/decoded/<digest of the dataset>/<part>-<presize>.v1.npy

Processes that want the same array at once wait for the one that makes it; where that one dies the next makes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pyserve.data.images import Pixels
from pyserve.data.staging import sync_folder

Shape = tuple[int, int, int, int]

_FOLDER = "decoded"
_VERSION = 1  # of what is in the arrays: one more where decoding gives other pixels
_ASK_EVERY_S = 0.1


def array_path(cache_dir: Path, digest: str, part: str, presize: int) -> Path:
    """Where the array of a dataset's part lies."""
    return cache_dir / _FOLDER / digest / f"{part}-{presize}.v{_VERSION}.npy"


def forget(cache_dir: Path, digest: str) -> None:
    """Remove all arrays of a dataset; who has one mapped keeps it."""
    shutil.rmtree(cache_dir / _FOLDER / digest, ignore_errors=True)


def cached(
    path: Path, shape: Shape, fill: Callable[[Callable[[int, Pixels], None]], None], wait: Callable[[], None]
) -> Pixels:
    """An array of the cache, mapped into memory; changes to it stay with the caller.

    Args:
        path: see `array_path`.
        shape: [N, C, H, W], N ≥ 1.
        fill: called where the array has to be made, with a function that takes an index and the picture there;
            that function may be called from many threads at once.
        wait: called ten times a second while another process makes it; may raise to end the waiting.

    Raises:
        OSError: the disk is full (before anything is decoded) or cannot be written.
    """
    array = _open(path, shape)
    if array is not None:
        return array
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock"), wait):
        array = _open(path, shape)
        return _make(path, shape, fill) if array is None else array


def _open(path: Path, shape: Shape) -> Pixels | None:
    """The array, or None where there is none of this shape: missing, damaged, or of another time."""
    try:
        array = np.load(path, mmap_mode="c")  # copy on write: torch wants arrays that can be written
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _make(path: Path, shape: Shape, fill: Callable[[Callable[[int, Pixels], None]], None]) -> Pixels:
    partial = path.with_suffix(".partial")  # of whoever holds the lock: what a dead one left is written over
    size_bytes = int(np.prod(shape[1:]))
    try:
        with partial.open("w+b") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            begin = file.tell()
            os.posix_fallocate(file.fileno(), begin, shape[0] * size_bytes)

            def put(index: int, pixels: Pixels) -> None:
                data = memoryview(pixels.tobytes())
                position = begin + index * size_bytes
                while data:
                    written = os.pwrite(file.fileno(), data, position)
                    data, position = data[written:], position + written

            fill(put)
            os.fsync(file.fileno())
            array: Pixels = np.memmap(file, np.uint8, "c", begin, shape)
        with suppress(FileNotFoundError):  # forgotten meanwhile; what is mapped stays
            partial.rename(path)
            sync_folder(path.parent)
        return array
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that ends with the process."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait()
                time.sleep(_ASK_EVERY_S)
        yield
