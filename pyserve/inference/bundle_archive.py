"""A model bundle as one file that travels: a tar of its three files, the same bytes whenever it is made.

`bundle.json` in it has the size and SHA-256 of the two others. Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pyserve.errors import DataError
from pyserve.inference.description import DESCRIPTION_FILE, GOLDEN_FILE, WEIGHTS_FILE

_FILES = (DESCRIPTION_FILE, GOLDEN_FILE, WEIGHTS_FILE)
_CHUNK_BYTES = 1 << 20


def packed(folder: Path) -> Iterator[bytes]:
    """The archive of the bundle in `folder`, in pieces of at most 1 MiB.

    Raises:
        OSError: a file cannot be read.
    """
    for name in _FILES:
        path = folder / name
        entry = tarfile.TarInfo(name)
        entry.size = path.stat().st_size
        entry.mode = 0o644
        yield entry.tobuf(tarfile.USTAR_FORMAT)
        with path.open("rb") as file:
            yield from chunks_of(file)
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)  # the end of every tar


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """An open file from its beginning, in pieces of at most 1 MiB."""
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def measure(chunks: Iterable[bytes]) -> tuple[int, str]:
    """Size of a file that comes in pieces, bytes, and its SHA-256 in hexadecimal digits."""
    size, digest = 0, hashlib.sha256()
    for chunk in chunks:
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive into an existing folder; what they hold is checked when the bundle is loaded.

    Raises:
        DataError: it is no archive of a bundle: names what is wrong.
        OSError: the disk cannot take it.
    """
    try:
        with tarfile.open(archive, "r:") as tar:  # "r:": uncompressed, so nothing is larger than the archive
            for entry in tar:
                _write(tar, entry, folder)
    except tarfile.TarError as error:
        raise DataError(f"the archive is no tar of a model bundle: {error}") from error
    missing = [name for name in _FILES if not (folder / name).exists()]
    if missing:
        raise DataError(f"the archive lacks {', '.join(missing)}")


def _write(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    if entry.name not in _FILES or not entry.isreg():
        raise DataError(f"archive entry {entry.name[:100]!r}: expected nothing but files {', '.join(_FILES)}")
    target = folder / entry.name
    if target.exists():
        raise DataError(f"the archive has {entry.name} twice")
    source = tar.extractfile(entry)
    assert source is not None  # noqa: S101  regular files have content
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
    if target.stat().st_size != entry.size:
        raise DataError(f"the archive ends within {entry.name}")
