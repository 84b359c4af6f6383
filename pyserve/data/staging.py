"""Folders that appear whole or not at all: filled beside the others, then renamed into place."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = ".new-"


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, locked for as long as its writer lives, and gone afterwards unless renamed."""
    while True:
        folder = parent / f"{_PREFIX}{uuid.uuid4().hex}"
        folder.mkdir()
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.is_dir():  # a cleaner may have come between the two lines above
            break
        os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all in it: gone at once for every reader, whenever this process dies.

    Raises:
        FileNotFoundError: there is none.
    """
    doomed = folder.with_name(f"{_PREFIX}{uuid.uuid4().hex}")
    folder.rename(doomed)
    sync_folder(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove what writers that are dead left in `parent`; those that live keep theirs."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        with suppress(BlockingIOError):  # its writer lives
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk, so that a rename cannot outlive it in a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_disk(folder: Path) -> None:
    """Bring all that was written to a folder's disk onto it: one wait instead of one for each of many files.

    Raises:
        OSError: the disk could not take it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(handle):  # os.sync would wait for all disks, also for one whose server is gone
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_files(source: Path, target: Path, paths: Iterable[str]) -> None:
    """Files of one folder in another one too: as links to the same data, or copied where that cannot be.

    Args:
        target: made if missing.
        paths: relative to `source`.
    """
    for path in paths:
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / path, place)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(source / path, place)
