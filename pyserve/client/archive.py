"""A dataset on its way out: a folder packed into a zip, or an archive as it is, with its size and checksum."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyserve.errors import DataError, InvalidArgumentError

_BLOCK_BYTES = 1024 * 1024
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # zip knows no earlier time; a fixed one makes equal folders equal archives
# Packed by their own format; deflating them again costs time and wins nothing.
_PACKED_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".heic", ".jp2"}


@dataclass(frozen=True)
class Archive:
    """An archive file that is ready to be sent; `sha256` in hexadecimal digits."""

    path: Path
    size_bytes: int
    sha256: str

    def chunks(self, offset_bytes: int, chunk_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
        """Its bytes from the offset on."""
        with self.path.open("rb") as file:
            file.seek(offset_bytes)
            while chunk := file.read(chunk_bytes):
                yield chunk


@contextmanager
def prepared(path: str | Path) -> Iterator[Archive]:
    """The archive for a folder (packed into a temporary file, removed at the end) or for an archive file.

    Raises:
        InvalidArgumentError: where the path is neither.
        DataError: where the folder holds no files, or a name that is not text.
    """
    source = Path(path).expanduser()
    if source.is_file():
        yield described(source)
    elif source.is_dir():
        with tempfile.TemporaryDirectory(prefix="pyserve-upload-") as folder:
            packed = Path(folder) / "dataset.zip"
            pack_folder(source, packed)
            yield described(packed)
    else:
        raise InvalidArgumentError.field("path", str(path), "a folder or an archive file that exists")


def pack_folder(folder: Path, target: Path) -> None:
    """Zip a folder: entries sorted, times and rights fixed, hidden files left out; equal folders, equal bytes."""
    with zipfile.ZipFile(target, "w", allowZip64=True) as archive:
        names = sorted(_files(folder))
        if not names:
            raise DataError(f"{folder} holds no files")
        for name in names:
            entry = zipfile.ZipInfo(_text(name), _EARLIEST)
            entry.external_attr = 0o644 << 16
            packed = Path(name).suffix.lower() in _PACKED_SUFFIXES
            entry.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever it is packed
            archive.writestr(entry, _read(folder / name))


def _files(folder: Path) -> Iterator[str]:
    """Paths of all files that are not hidden, relative, with "/"; links are followed, loops of them are not."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in files:
            path = Path(root) / name
            if not _hidden(name) and path.is_file():
                yield path.relative_to(folder).as_posix()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the file name {name!r} is not valid text; rename it") from None
    return name


def described(path: Path) -> Archive:
    """An archive file with its size and checksum."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    return Archive(path, path.stat().st_size, digest.hexdigest())
