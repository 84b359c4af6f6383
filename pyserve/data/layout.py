"""Which folder is which class in which part."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyserve.data.manifest import Part
from pyserve.data.names import is_ignored, is_picture, part_of
from pyserve.errors import DataError

_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class ClassFolder:
    """The folder of a class; `part` None means that its pictures are still to be split."""

    name: str
    path: Path
    part: Part | None
    shown: str  # the path inside the dataset


def entries(folder: Path) -> Sequence[os.DirEntry[str]]:
    """What lies in a folder, by name, but what is ignored.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as inside:
            return sorted((e for e in inside if not is_ignored(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {folder.name} cannot be read: {error.strerror}") from error


def unwrap(folder: Path) -> Path:
    """The folder itself, or the single one in it where that holds the class folders."""
    while True:
        inside = _subfolders(folder)
        if len(inside) != 1 or inside[0].is_symlink() or _has_pictures(folder) or not _subfolders(inside[0]):
            return folder
        folder = inside[0]


def class_folders(root: Path) -> Sequence[ClassFolder]:
    """The classes' folders, in the order of classes and then of parts.

    Raises:
        DataError: pictures outside of any class, less than two classes, parts of different classes, a part without
            the other, names that are not distinct enough.
    """
    if _has_pictures(root):
        raise _stray("")
    parts: dict[Part, Path] = {}
    tests, others = [], []
    for folder in _plain(_subfolders(root), ""):
        part = part_of(folder.name) if _holds_classes(folder) else None
        if part is None:
            others.append(folder)
        elif part == "test":
            tests.append(folder)
        elif part in parts:
            raise DataError(f"got {parts[part].name}/ and {folder.name}/, expected one folder of the {part} part")
        else:
            parts[part] = folder
    if len(parts) == 2:
        return _both(parts["train"], parts["valid"])
    if parts or tests:
        found = ", ".join(f"{folder.name}/" for folder in (*parts.values(), *tests, *others)[:_NAMED_IN_ERRORS])
        raise DataError(
            f"got {found}, expected train/ and valid/, or one folder per class (a folder of pictures that "
            "measure the training must be named valid/)"
        )
    return _classes(root, None, "")


def _both(train: Path, valid: Path) -> Sequence[ClassFolder]:
    found = [*_classes(train, "train", f"{train.name}/"), *_classes(valid, "valid", f"{valid.name}/")]
    names = {part: {c.name for c in found if c.part == part} for part in ("train", "valid")}
    for here, there, missing in (
        (train, valid, names["train"] - names["valid"]),
        (valid, train, names["valid"] - names["train"]),
    ):
        if missing:
            shown = ", ".join(repr(name) for name in sorted(missing)[:_NAMED_IN_ERRORS])
            raise DataError(f"{here.name}/ has class {shown}, {there.name}/ has not; expected the same in both")
    return sorted(found, key=lambda c: (c.name, c.part))


def _classes(root: Path, part: Part | None, prefix: str) -> Sequence[ClassFolder]:
    folders = _plain(_subfolders(root), prefix)
    where = f"{prefix}: " if prefix else ""
    if _has_pictures(root):
        raise _stray(where)
    if not folders:
        raise DataError(f"{where}got no pictures, expected one folder of pictures per class")
    by_key: dict[str, str] = {}
    for folder in folders:
        if any(0xD800 <= ord(letter) < 0xE000 for letter in folder.name):
            raise DataError(f"{where}the name of class folder {folder.name!a} is not in UTF-8")
        other = by_key.setdefault(_class_name(folder).casefold(), folder.name)
        if other != folder.name:
            raise DataError(f"{where}classes {other!r} and {folder.name!r} differ in case or encoding only")
    if len(folders) == 1:
        raise DataError(f"{where}got one class, {folders[0].name!r}, expected 2 or more")
    return sorted(
        (ClassFolder(_class_name(folder), folder, part, f"{prefix}{folder.name}") for folder in folders),
        key=lambda c: c.name,
    )


def _stray(where: str) -> DataError:
    return DataError(f"{where}got pictures outside of class folders, expected all in one folder per class")


def _class_name(folder: Path) -> str:
    """The folder's name as it is written everywhere: some systems keep letter and accent apart."""
    return unicodedata.normalize("NFC", folder.name)


def _holds_classes(folder: Path) -> bool:
    return bool(_subfolders(folder)) and not _has_pictures(folder)


def _subfolders(folder: Path) -> Sequence[Path]:
    return [Path(entry.path) for entry in entries(folder) if entry.is_dir()]


def _plain(folders: Sequence[Path], prefix: str) -> Sequence[Path]:
    """The folders, if none is a link, which could lead anywhere."""
    for folder in folders:
        if folder.is_symlink():
            raise DataError(f"{prefix}{folder.name} is a link, expected a folder")
    return folders


def _has_pictures(folder: Path) -> bool:
    return any(is_picture(entry.name) and not entry.is_dir() for entry in entries(folder))
