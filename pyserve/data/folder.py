"""From a folder of pictures to a manifest: classes and parts found, every picture read once, the split drawn.

A folder holds one sub-folder per class, or `train/` and `valid/` (also `training`, `val`, `validation`) with such
folders in them; `test/` beside these is held out. All may lie in a single wrapping folder. Pictures of a class may
lie in folders of their own. Hidden files and files that are no pictures are passed over.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyserve.data.images import read_square
from pyserve.data.layout import ClassFolder, class_folders, entries, unwrap
from pyserve.data.manifest import BadImage, Item, Manifest, Part, digest_of
from pyserve.data.names import is_picture
from pyserve.data.parallel import map_in_order
from pyserve.data.split import draw_valid
from pyserve.errors import DataError

log = logging.getLogger(__name__)

_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class ScanOptions:
    """How a dataset is made of a folder (`pyserve.v1.DatasetOptions`, which explains each field)."""

    bad_images: Literal["leave_out", "refuse"] = "leave_out"
    valid_fraction: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class _Found:
    """A picture's file."""

    path: Path
    folder: ClassFolder
    is_plain: bool


@dataclass(frozen=True)
class _Checked:
    """A picture that was read; `problem` "" means that it can be used."""

    path: str  # inside the dataset
    folder: ClassFolder
    sha256: str = ""
    size_bytes: int = 0
    problem: str = ""


def scan(
    dataset_id: str,
    folder: Path,
    options: ScanOptions,
    *,
    max_pixels: int,
    max_files: int,
    threads: int = 0,
) -> Manifest:
    """Make a manifest of a folder; every picture is decoded once, and hashed as it is read.

    Args:
        dataset_id: name part of the dataset.
        folder: where the pictures lie, absolute.
        options: how the split is drawn and what becomes of bad pictures.
        max_pixels: larger pictures are bad.
        max_files: most pictures.
        threads: pictures read at once; 0 means one per core.

    Raises:
        DataError: no pictures or more than `max_files`, one class only, a class without pictures or too small to
            split, parts with different classes; bad pictures where `options` refuses them. Names no folder outside
            the dataset.
    """
    root = unwrap(folder)
    folders = class_folders(root)
    found = _find(root, folders, max_files)
    checked = list(map_in_order(lambda one: _check(one, root, max_pixels), found, threads=threads))
    bad = tuple(BadImage(c.path, c.problem) for c in checked if c.problem)
    if bad and options.bad_images == "refuse":
        raise DataError(f"{len(bad)} of {len(checked)} pictures cannot be used: {_some(bad)}")
    good = [c for c in checked if not c.problem]
    _require_pictures(folders, good, bad)
    classes = tuple(sorted({c.name for c in folders}))
    items = _items(classes, good, options)
    _warn_of_copies(dataset_id, items)
    return Manifest(
        dataset_id=dataset_id,
        root=str(root),
        classes=classes,
        items=items,
        bad_images=bad,
        has_own_split=folders[0].part is not None,
        size_bytes=sum(c.size_bytes for c in good),
        digest=digest_of(classes, items),
        create_time=time.time(),
    )


def _find(root: Path, folders: Sequence[ClassFolder], max_files: int) -> Iterator[_Found]:
    """All pictures below the class folders, in the order of classes, parts and paths."""
    count = 0
    for folder in folders:
        for entry in _walk(root, folder.path):
            count += 1
            if count > max_files:
                raise DataError(
                    f"the folder holds too many pictures, expected at most {max_files}, the server's "
                    "max_archive_entries",
                    metadata={"max_archive_entries": str(max_files)},
                )
            yield _Found(Path(entry.path), folder, entry.is_file(follow_symlinks=False))


def _walk(root: Path, folder: Path) -> Iterator[os.DirEntry[str]]:
    """The pictures in a folder and below, by name; not through links, which could lead anywhere."""
    for entry in entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, Path(entry.path))
        elif is_picture(entry.name):
            yield entry
        elif entry.is_symlink() and entry.is_dir():
            raise DataError(f"{_inside(root, Path(entry.path))} is a link, expected a folder")


def _check(found: _Found, root: Path, max_pixels: int) -> _Checked:
    """Read, hash and decode one picture."""
    path = _inside(root, found.path)
    if not found.is_plain:
        return _Checked(path, found.folder, problem="is a link or a device, expected a file")
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        return _Checked(shown, found.folder, problem="has a name that is not in UTF-8")
    try:
        read = read_square(found.path, 1, max_pixels=max_pixels)  # all of it, at the least effort
    except DataError as error:
        return _Checked(path, found.folder, problem=error.message)
    except OSError as error:
        return _Checked(path, found.folder, problem=f"cannot be read: {error.strerror}")
    return _Checked(path, found.folder, read.sha256, read.size_bytes)


def _require_pictures(folders: Sequence[ClassFolder], good: Sequence[_Checked], bad: Sequence[BadImage]) -> None:
    """Every class has a picture, in both parts where there are two."""
    counts = Counter(c.folder for c in good)
    empty = [folder for folder in folders if not counts[folder]]
    if len(empty) == len(folders):
        reason = f"all {len(bad)} cannot be used: {_some(bad)}" if bad else "its class folders are empty"
        raise DataError(f"the dataset has no pictures: {reason}")
    if empty:
        names = ", ".join(f"{folder.shown}/" for folder in empty[:_NAMED_IN_ERRORS])
        below = [b for b in bad if any(b.path.startswith(f"{folder.shown}/") for folder in empty)]
        reason = f" that can be used: {_some(below)}" if below else ""
        raise DataError(f"class without pictures{reason or f': {names}'}; add some, or remove the folder")


def _items(classes: Sequence[str], good: Sequence[_Checked], options: ScanOptions) -> tuple[Item, ...]:
    label = {name: index for index, name in enumerate(classes)}
    to_split: dict[str, dict[str, str]] = {}
    for c in good:
        if c.folder.part is None:
            to_split.setdefault(c.folder.name, {})[c.path] = c.sha256
    valid: set[str] = set()
    for name, pictures in to_split.items():
        valid |= draw_valid(pictures, fraction=options.valid_fraction, seed=options.seed, name=name)

    def part(picture: _Checked) -> Part:
        return picture.folder.part or ("valid" if picture.path in valid else "train")

    return tuple(Item(c.path, label[c.folder.name], part(c), c.sha256) for c in good)


def _warn_of_copies(dataset_id: str, items: Sequence[Item]) -> None:
    """Copies of another class, or in both parts: allowed, for they may be meant, but the log tells of them."""
    firsts: dict[str, Item] = {}
    pairs = [(firsts.setdefault(item.sha256, item), item) for item in items]
    for what, found in (
        ("have a copy of another class", [pair for pair in pairs if pair[0].label != pair[1].label]),
        ("have a copy in the other part", [pair for pair in pairs if pair[0].part != pair[1].part]),
    ):
        if found:
            first, second = found[0]
            log.warning(
                "datasets/%s: %d pictures %s, such as %s and %s",
                dataset_id,
                len(found),
                what,
                first.path,
                second.path,
            )


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _some(bad: Sequence[BadImage]) -> str:
    shown = "; ".join(f"{one.path} {one.reason}" for one in bad[:_NAMED_IN_ERRORS])
    return f"{shown}; and {len(bad) - _NAMED_IN_ERRORS} more" if len(bad) > _NAMED_IN_ERRORS else shown
