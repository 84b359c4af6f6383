"""Unpacking archives of strangers: zip, tar, tar.gz; no path leaves its folder, no links, everything bounded.

Bytes are counted as they come out, never believed from a header. Nothing is extracted by zipfile or tarfile
themselves: they only read, and plain files are written here.
"""

from __future__ import annotations

import errno
import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, BinaryIO, cast

from pyserve.data.names import is_ignored
from pyserve.errors import DataError

_CHUNK_BYTES = 1 << 20
_MAX_DEPTH = 32
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what is not UTF-8 comes as a surrogate
_ZIP_ENTRY_SIGN = b"PK\x01\x02"  # begins each entry of a zip's central directory
_ZIP_ENTRY_BYTES = 1024  # of the central directory, more than real ones have
_ZIP_ENCRYPTED = 0x1
_TAR_HEADER_BYTES = 1 << 20  # of one entry; long names are told in headers that may claim any size


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold; the fields mean what they mean in `config.Settings`."""

    max_bytes: int
    max_entries: int
    max_compression_ratio: float


def unpack(archive: Path, target: Path, limits: ArchiveLimits) -> None:
    """Unpack a zip, tar or tar.gz, told by its content, into an empty folder.

    Hidden files and file managers' droppings are passed over. What was written before an error stays in `target`,
    which the caller removes (see `staging_folder`).

    Raises:
        DataError: no archive, a damaged or encrypted one, an entry that is refused, or a limit exceeded: names it.
        OSError: the disk cannot take it.
    """
    writer = _Writer(target, limits, archive.stat().st_size)
    with archive.open("rb") as file:
        sign = file.read(2)
        file.seek(0)
        with _damage_told():
            if sign == b"PK":
                _unpack_zip(archive, limits, writer)
            elif sign == b"\x1f\x8b":
                with gzip.open(file) as plain:
                    _unpack_tar(cast(BinaryIO, plain), writer)
            else:
                _unpack_tar(file, writer)


class _Writer:
    """Writes entries below one folder and counts them."""

    def __init__(self, target: Path, limits: ArchiveLimits, packed_bytes: int) -> None:
        self._target = target
        self._limits = limits
        self._max_unpacked = limits.max_compression_ratio * packed_bytes
        self._bytes = 0
        self._entries = 0

    def count_entry(self) -> None:
        """Count an entry, also one that is passed over."""
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise _too_much("entries", self._limits.max_entries, "max_archive_entries")

    def folder(self, name: str) -> None:
        """Make the folder of an entry."""
        path = self._place(name)
        if path is not None:
            with _clashes_told(name):
                path.mkdir(parents=True, exist_ok=True)

    def file(self, name: str, size_bytes: int, content: IO[bytes]) -> None:
        """Write the file of an entry that claims a size."""
        path = self._place(name)
        if path is None:
            self._count_bytes(size_bytes)  # a tar is read through all the same
            return
        with _clashes_told(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                while chunk := content.read(_CHUNK_BYTES):
                    self._count_bytes(len(chunk))
                    out.write(chunk)

    def _count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._limits.max_bytes:
            raise _too_much("unpacked bytes", self._limits.max_bytes, "max_archive_bytes")
        if self._bytes > self._max_unpacked:
            ratio = self._limits.max_compression_ratio
            raise _too_much("unpacked bytes per packed byte", ratio, "max_compression_ratio")

    def _place(self, name: str) -> Path | None:
        """Where an entry goes; None where it is passed over."""
        parts = entry_parts(name)
        return None if any(is_ignored(part) for part in parts) else self._target.joinpath(*parts)


def entry_parts(name: str) -> tuple[str, ...]:
    """The folders and the last part of an entry's name.

    Backslashes count as slashes, as the archives of some Windows programs mean them.

    Raises:
        DataError: the name is absolute, leads upwards, is nested too deeply, or is not text.
    """
    slashed = name.replace("\\", "/")
    parts = tuple(part for part in slashed.split("/") if part not in ("", "."))
    if slashed.startswith("/") or PureWindowsPath(slashed).drive or ".." in parts:
        raise DataError(f"archive entry {_shown(name)} leads out of its folder, expected a relative path inside")
    if len(parts) > _MAX_DEPTH:
        raise DataError(
            f"archive entry {_shown(name)} is {len(parts)} folders deep, expected {_MAX_DEPTH} at most"
        )
    if _NOT_TEXT.search(name):
        raise DataError(f"archive entry {_shown(name)} has control characters in its name, or is not in UTF-8")
    return parts


class _Directory(io.BufferedReader):
    """A zip file that refuses to hand out a central directory of too many entries, before zipfile parses it."""

    def __init__(self, path: Path, max_entries: int) -> None:
        super().__init__(io.FileIO(path))
        self._max_entries = max_entries
        self._unread = True

    def read(self, size: int | None = -1, /) -> bytes:
        """Like any file's."""
        too_large = (
            self._unread and size is not None and size > self._max_entries * _ZIP_ENTRY_BYTES + _CHUNK_BYTES
        )
        data = b"" if too_large else super().read(size)
        if too_large or (self._unread and data.count(_ZIP_ENTRY_SIGN) > self._max_entries):
            raise _too_much("entries", self._max_entries, "max_archive_entries")
        return data

    def parsed(self) -> None:
        """Let the entries' contents, which may hold anything, be read."""
        self._unread = False


def _unpack_zip(path: Path, limits: ArchiveLimits, writer: _Writer) -> None:
    with _Directory(path, limits.max_entries) as file, zipfile.ZipFile(file) as archive:
        file.parsed()
        for info in archive.infolist():
            writer.count_entry()
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_plain(info.filename)
            if info.flag_bits & _ZIP_ENCRYPTED:
                raise DataError(f"archive entry {_shown(info.filename)} is encrypted, expected a plain archive")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                method = f"method {info.compress_type}"
                raise DataError(f"archive entry {_shown(info.filename)} is packed by {method}, expected deflate")
            if info.filename.endswith("/"):  # not info.is_dir(), which trips over an empty name
                writer.folder(info.filename)
            else:
                with archive.open(info) as content:
                    writer.file(info.filename, info.file_size, content)


class _Metered:
    """A tar stream that hands out what is due: the announced content, and headers of a sensible size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.due = _TAR_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """Like any file's."""
        data = self._file.read(size)
        self.due -= len(data)
        if self.due < 0:
            raise DataError("the archive is damaged: an entry's header is too long")
        return data


def _unpack_tar(file: BinaryIO, writer: _Writer) -> None:
    stream = _Metered(file)
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            writer.count_entry()
            if member.size < 0:
                raise DataError(f"the archive is damaged: the size of {_shown(member.name)} is negative")
            stream.due = member.size + _TAR_HEADER_BYTES  # up to the content of the next entry
            if member.isdir():
                writer.folder(member.name)
            elif member.isreg() and not member.issparse():
                content = archive.extractfile(member)
                assert content is not None  # noqa: S101  of a plain file there is one
                writer.file(member.name, member.size, content)
            else:
                raise _not_plain(member.name)


@contextmanager
def _damage_told() -> Iterator[None]:
    """What the libraries say of damaged archives, as one of our errors."""
    try:
        yield
    except tarfile.ReadError as error:
        raise DataError("the archive is no zip, tar or tar.gz, or not all of it") from error
    except (zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise DataError(f"the archive is damaged: {error}") from error
    except (NotImplementedError, UnicodeError, ValueError, struct.error) as error:
        raise DataError(f"the archive cannot be read: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise DataError(
            "the archive is damaged: an entry lies before its beginning"
        ) from error  # zipfile seeks there


@contextmanager
def _clashes_told(name: str) -> Iterator[None]:
    """Names that a folder cannot hold, or not beside each other."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"archive entry {_shown(name)} is there twice, or as a file and a folder") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"archive entry {_shown(name)} has too long a name") from error
        raise


def _not_plain(name: str) -> DataError:
    return DataError(f"archive entry {_shown(name)} is a link or a device, expected plain files and folders")


def _too_much(what: str, limit: float, setting: str) -> DataError:
    # not a limit that a later try could find relaxed: the archive is at fault
    return DataError(
        f"the archive holds too many {what}, expected at most {limit:.15g}, the server's {setting}",
        metadata={setting: f"{limit:.15g}"},
    )


def _shown(name: str) -> str:
    """A name for an error: short, and nothing in it that a terminal would obey."""
    return repr(name if len(name) <= 200 else f"{name[:200]}…")
