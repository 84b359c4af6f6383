from __future__ import annotations

import pytest

from pyserve.data.names import is_ignored, is_picture, part_of


@pytest.mark.parametrize("name", [".DS_Store", "._cat.jpg", ".git", "__MACOSX", "Thumbs.db", "desktop.ini"])
def test_droppings_are_ignored(name: str) -> None:
    assert is_ignored(name)


@pytest.mark.parametrize("name", ["cat", "cat.jpg", "_MACOSX", "thumbs"])
def test_all_else_is_not(name: str) -> None:
    assert not is_ignored(name)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.b.png", "photo.HEIC", "x.Webp"])
def test_pictures_by_their_ending(name: str) -> None:
    assert is_picture(name)


@pytest.mark.parametrize("name", ["a.txt", "jpg", "a.jpg.bak", "a.svg", "a"])
def test_files_that_are_no_pictures(name: str) -> None:
    assert not is_picture(name)


def test_names_of_parts() -> None:
    assert [part_of(name) for name in ("train", "Training", "VAL", "valid", "validation", "test")] == [
        "train",
        "train",
        "valid",
        "valid",
        "valid",
        "test",
    ]
    assert part_of("trains") is None
