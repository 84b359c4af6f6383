"""What names of files and folders mean: what is ignored, what is a picture, which folder is which part."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

CACHE_FOLDER = "cache"  # below the data folder: what can be made again
# Also formats that cannot be decoded here (HEIC): such a picture is named as bad, not passed over in silence.
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".heic", ".heif"),
)
_DROPPINGS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_PART_NAMES: dict[str, Literal["train", "valid", "test"]] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


def is_ignored(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden ones, and what file managers drop (`__MACOSX`)."""
    return name.startswith(".") or name.lower() in _DROPPINGS


def is_picture(name: str) -> bool:
    """Whether a file's ending is that of a picture."""
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def part_of(name: str) -> Literal["train", "valid", "test"] | None:
    """The part that a folder's name stands for; None for any other name. Case does not matter."""
    return _PART_NAMES.get(name.lower())
