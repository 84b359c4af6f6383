"""Archives of strangers: what is taken, what is refused, and that nothing ever leaves the folder."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserve.data.archive import ArchiveLimits, entry_parts, unpack
from pyserve.errors import DataError
from tests.data.support import pictures, tarred, tree, zipped

LIMITS = ArchiveLimits(max_bytes=1_000_000, max_entries=100, max_compression_ratio=100)
FILES = pictures(2)

PACKERS: dict[str, Callable[[Any], bytes]] = {
    "zip": zipped,
    "stored zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "tar": tarred,
    "pax tar": lambda files: tarred(files, format=tarfile.PAX_FORMAT),
    "tar.gz": lambda files: tarred(files, "w:gz"),
}


def unpacked(folder: Path, archive: bytes, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    (folder / "archive").write_bytes(archive)
    (folder / "out").mkdir()
    unpack(folder / "archive", folder / "out", limits)
    return tree(folder / "out")


def refused(folder: Path, archive: bytes, limits: ArchiveLimits = LIMITS) -> str:
    """The error's sentence; nothing may have appeared beside the target."""
    with pytest.raises(DataError) as info:
        unpacked(folder, archive, limits)
    assert {path.name for path in folder.iterdir()} == {"archive", "out"}
    assert str(folder) not in info.value.message
    return info.value.message


@pytest.mark.parametrize("kind", PACKERS)
def test_every_kind_of_archive(tmp_path: Path, kind: str) -> None:
    files = {**FILES, "a/ünïcode 日本.png": b"x", "empty/": b"", "a/b/c.txt": b""}
    assert unpacked(tmp_path, PACKERS[kind](files)) == {k: v for k, v in files.items() if not k.endswith("/")}
    assert (tmp_path / "out" / "empty").is_dir()


@pytest.mark.parametrize("kind", PACKERS)
def test_droppings_are_passed_over(tmp_path: Path, kind: str) -> None:
    droppings = {".DS_Store": b"x", "__MACOSX/red/._0.png": b"x", "red/Thumbs.db": b"x", ".git/config": b"x"}
    assert unpacked(tmp_path, PACKERS[kind]({**droppings, **FILES, "red/.hidden": b"x"})) == FILES


def test_dots_and_backslashes_in_names(tmp_path: Path) -> None:
    assert unpacked(tmp_path, zipped({"./red//1.png": b"a", "red\\2.png": b"b"})) == {
        "red/1.png": b"a",
        "red/2.png": b"b",
    }


ESCAPES = [
    "../evil.png",
    "red/../../evil.png",
    "/evil.png",
    "\\evil.png",
    "..\\evil.png",
    "C:\\evil.png",
    "C:evil.png",
]


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("name", ESCAPES)
def test_paths_that_lead_out(tmp_path: Path, kind: str, name: str) -> None:
    message = refused(tmp_path, PACKERS[kind]({**FILES, name: b"x"}))
    assert message.endswith("leads out of its folder, expected a relative path inside")
    assert "evil.png" in message


@given(st.text(st.sampled_from("ab./\\:~\0\x1b é\ud800") | st.characters(), max_size=40))
@settings(max_examples=500)
def test_names_never_lead_out(name: str) -> None:
    try:
        parts = entry_parts(name)
    except DataError as error:
        assert error.message.isprintable()  # noqa: PT017  either way something is asserted
        return
    root = "/data/images"
    path = os.path.normpath(os.path.join(root, *parts))  # noqa: PTH118  told by another library
    assert path == root or path.startswith(f"{root}/")
    assert not set("/\\\0") & set("".join(parts))


@pytest.mark.parametrize("name", ["a\x1b[2J.png", "a\nb.png", "a\x7f.png"])
def test_names_that_a_terminal_would_obey(tmp_path: Path, name: str) -> None:
    message = refused(tmp_path, zipped({name: b"x"}))
    assert "control characters" in message
    assert message.isprintable()


def test_narrow_spaces_are_letters(tmp_path: Path) -> None:
    """macOS puts them into the names of screenshots."""
    name = "red/Screenshot 2026-01-01 at 1.00.00\u202fPM.png"
    assert unpacked(tmp_path, zipped({name: b"x"})) == {name: b"x"}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    info = tarfile.TarInfo("red/caf\udce9.png")
    assert "not in UTF-8" in refused(tmp_path, tarred({"": info}, format=tarfile.GNU_FORMAT))


def test_names_too_long_or_too_deep(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert "has too long a name" in refused(tmp_path / "a", zipped({"a" * 300: b"x"}))
    (tmp_path / "b").mkdir()
    assert "is 41 folders deep, expected 32 at most" in refused(tmp_path / "b", zipped({"a/" * 40 + "b": b"x"}))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_tar_entries_that_are_no_plain_files(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("red/x.png")
    info.type, info.linkname = kind, "/etc/passwd"
    message = refused(tmp_path, tarred({**FILES, "x": info}))
    assert message == "archive entry 'red/x.png' is a link or a device, expected plain files and folders"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_zip_entries_that_are_no_plain_files(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("red/x.png")
    info.external_attr = (kind | 0o777) << 16
    message = refused(tmp_path, zipped({**FILES, info: b"/etc/passwd"}))  # type: ignore[dict-item]
    assert message == "archive entry 'red/x.png' is a link or a device, expected plain files and folders"


def test_a_link_and_a_file_through_it(tmp_path: Path) -> None:
    """The classic: a link out of the folder, then an entry below it."""
    link = tarfile.TarInfo("red")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    refused(tmp_path, tarred({"red": link, "red/evil.png": b"x"}))
    assert not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b", "./a//b")])
@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_clash(tmp_path: Path, pack: Callable[..., bytes], names: tuple[str, str]) -> None:
    class Twice(dict[str, bytes]):
        def items(self) -> Any:
            return [(names[0], b"x"), (names[1], b"y")]

    assert "is there twice, or as a file and a folder" in refused(tmp_path, pack(Twice()))


@pytest.mark.parametrize("kind", PACKERS)
def test_the_number_of_entries_is_bounded(tmp_path: Path, kind: str) -> None:
    files = {f"{i}.png": b"" for i in range(101)}
    message = refused(tmp_path, PACKERS[kind](files))
    assert message == "the archive holds too many entries, expected at most 100, the server's max_archive_entries"
    assert len(tree(tmp_path / "out")) <= 100


def test_a_zip_of_too_many_entries_is_never_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped({f"{i}.png": b"" for i in range(101)})
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *args: pytest.fail("parsed"))
    assert "too many entries" in refused(tmp_path, archive)


def test_a_central_directory_of_any_size_is_never_read(tmp_path: Path) -> None:
    directory = bytes(5_000_000)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 0, 0)
    assert "too many entries" in refused(tmp_path, b"PK" + directory[2:] + end)


@pytest.mark.parametrize("kind", PACKERS)
def test_the_unpacked_size_is_bounded(tmp_path: Path, kind: str) -> None:
    noise = os.urandom(300_000)
    message = refused(tmp_path, PACKERS[kind]({f"{i}.png": noise for i in range(4)}))
    assert message == (
        "the archive holds too many unpacked bytes, expected at most 1000000, the server's max_archive_bytes"
    )
    assert sum(len(data) for data in tree(tmp_path / "out").values()) <= 1_000_000 + (1 << 20)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["bomb.png", ".hidden"])
def test_the_ratio_is_bounded(tmp_path: Path, kind: str, name: str) -> None:
    message = refused(tmp_path, PACKERS[kind]({name: bytes(900_000)}))
    assert "too many unpacked bytes per packed byte, expected at most 100, the server's max_compr" in message


def test_a_zip_whose_header_lies_about_the_size(tmp_path: Path) -> None:
    """A megabyte of zeros that claims to be ten bytes."""
    archive = bytearray(zipped({"bomb.png": bytes(900_000)}))
    local, central = archive.index(b"PK\3\4"), archive.index(b"PK\1\2")
    archive[local + 22 : local + 26] = archive[central + 24 : central + 28] = struct.pack("<I", 10)
    assert "the archive is damaged" in refused(tmp_path, bytes(archive))
    assert len(tree(tmp_path / "out").get("bomb.png", b"")) <= 10


def test_a_zip_whose_entry_lies_before_its_beginning(tmp_path: Path) -> None:
    archive = zipped(FILES)
    end = archive.rindex(b"PK\x05\x06")
    moved = archive[: end + 16] + (int.from_bytes(archive[end + 16 : end + 20], "little") + 999).to_bytes(
        4, "little"
    )
    assert "damaged" in refused(tmp_path, moved + archive[end + 20 :])


def test_a_zip_entry_without_a_name(tmp_path: Path) -> None:
    archive = zipped({"x": b"abc"})
    nameless = archive.replace(b"x", b"\0")  # zipfile cuts names at the first zero byte
    assert refused(tmp_path, nameless)


def test_a_tar_header_of_any_size_is_never_read(tmp_path: Path) -> None:
    """A pax header may claim gigabytes, which tarfile would read into memory; gzip makes nothing of them."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    bomb = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(8 << 20))
    message = refused(tmp_path, bomb, ArchiveLimits(1 << 40, 100, 1e6))
    assert message == "the archive is damaged: an entry's header is too long"


def test_a_tar_entry_of_negative_size(tmp_path: Path) -> None:
    """It would take back what others have counted."""
    header = bytearray(tarfile.TarInfo("red/1.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # −512 in base 256
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    message = refused(tmp_path, bytes(header) + bytes(10240))
    assert message == "the archive is damaged: the size of 'red/1.png' is negative"


def test_an_encrypted_zip(tmp_path: Path) -> None:
    archive = bytearray(zipped({"a.png": b"x"}))
    for sign, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        archive[archive.index(sign) + offset] |= 1
    assert refused(tmp_path, bytes(archive)) == "archive entry 'a.png' is encrypted, expected a plain archive"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    message = refused(tmp_path, zipped({"a.png": b"x"}, method))
    assert message == f"archive entry 'a.png' is packed by method {method}, expected deflate"


@pytest.mark.parametrize("data", [b"", b"hello", b"PK", b"PK\3\4 and no more", b"\x1f\x8b", b"\x1f\x8b\x08hello"])
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    assert refused(tmp_path, data).startswith("the archive ")


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_tars_that_are_packed_otherwise(tmp_path: Path, mode: str) -> None:
    assert refused(tmp_path, tarred(FILES, mode)) == "the archive is no zip, tar or tar.gz, or not all of it"


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.8])  # beyond that a tar may have nothing but padding
def test_truncated_archives(tmp_path: Path, kind: str, kept: float) -> None:
    archive = PACKERS[kind]({f"{i}.png": os.urandom(20_000) for i in range(3)})
    assert refused(tmp_path, archive[: int(len(archive) * kept)]).startswith("the archive is ")


@given(st.data())
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damage_gives_files_or_our_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    archive = bytearray(PACKERS[data.draw(st.sampled_from(sorted(PACKERS)))](FILES))
    for _ in range(data.draw(st.integers(1, 6))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpacked(folder, bytes(archive))
    except DataError as error:
        assert error.message.isprintable()  # noqa: PT017  either way something is asserted
    assert {path.name for path in folder.iterdir()} == {"archive", "out"}
    assert not any(path.is_symlink() for path in (folder / "out").rglob("*"))


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "xb":
            raise OSError(28, "No space left on device")
        return plain(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        unpacked(tmp_path, zipped(FILES))
