"""From folders to manifests: layouts, splits, bad pictures, and what cannot be a dataset."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserve.data import folder as folder_module
from pyserve.data.folder import ScanOptions, scan
from pyserve.data.manifest import Manifest
from pyserve.errors import DataError
from tests.data.support import CLASSES, pictures, png, png_header, write

BAD = {"red/cut.png": png(1)[:-300], "red/text.jpg": b"hello", "green/bomb.png": png_header(5000, 5000)}


def scanned(root: Path, files: dict[str, bytes] | None = None, **options: Any) -> Manifest:
    write(root, files or {})
    return scan("pets", root, ScanOptions(**options), max_pixels=1_000_000, max_files=1000, threads=2)


def refused(root: Path, files: dict[str, bytes] | None = None, **options: Any) -> str:
    with pytest.raises(DataError) as info:
        scanned(root, files, **options)
    assert str(root) not in info.value.message
    return info.value.message


def counts(manifest: Manifest) -> Counter[tuple[str, str]]:
    """Pictures by (part, class)."""
    return Counter((item.part, manifest.classes[item.label]) for item in manifest.items)


def test_a_folder_per_class(tmp_path: Path) -> None:
    files = pictures(10)
    manifest = scanned(tmp_path, {**files, "notes.txt": b"x", "red/notes.txt": b"x"})
    assert manifest.classes == CLASSES
    assert {item.path for item in manifest.items} == set(files)
    assert all(item.path.startswith(f"{manifest.classes[item.label]}/") for item in manifest.items)
    assert counts(manifest) == {("train", c): 8 for c in CLASSES} | {("valid", c): 2 for c in CLASSES}
    assert manifest.size_bytes == sum(len(data) for data in files.values())
    assert (manifest.root, manifest.dataset_id) == (str(tmp_path), "pets")
    assert not manifest.has_own_split
    assert not manifest.bad_images


@given(st.lists(st.integers(2, 9), min_size=2, max_size=4), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_splits_are_stratified_disjoint_complete_and_repeatable(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], fraction: float, seed: int
) -> None:
    root = tmp_path_factory.mktemp("split")
    files = {f"class{c}/{i}.png": png(100 * c + i) for c, size in enumerate(sizes) for i in range(size)}
    manifest = scanned(root, files, valid_fraction=fraction, seed=seed)
    train, valid = ({item.path for item in manifest.part_items(part)} for part in ("train", "valid"))
    assert train | valid == set(files)
    assert not train & valid
    for c, size in enumerate(sizes):
        count = counts(manifest)["valid", f"class{c}"]
        assert 1 <= count <= size - 1
        assert abs(count - fraction * size) < 1.01
    again = scanned(root, valid_fraction=fraction, seed=seed)
    assert (again.items, again.digest) == (manifest.items, manifest.digest)


def test_the_digest_tells_datasets_apart(tmp_path: Path) -> None:
    whole = scanned(tmp_path / "a", pictures(20))
    assert scanned(tmp_path / "b", pictures(20)).digest == whole.digest
    assert scanned(tmp_path / "a", seed=1).digest != whole.digest
    assert scanned(tmp_path / "c", pictures(20) | {"red/0.png": png(77)}).digest != whole.digest
    assert scanned(tmp_path / "d", pictures(20) | {"red/x.png": png(77)}).digest != whole.digest


@pytest.mark.parametrize(
    ("train", "valid"), [("train", "valid"), ("Train", "VAL"), ("training", "validation"), ("x/train", "x/valid")]
)
def test_parts_of_its_own(tmp_path: Path, train: str, valid: str) -> None:
    files = pictures(3, prefix=f"{train}/") | pictures(2, prefix=f"{valid}/")
    manifest = scanned(
        tmp_path, files | {"__MACOSX/x.png": b"", "test/1.png": png(0)} if "/" not in train else files
    )
    assert manifest.has_own_split
    assert manifest.classes == CLASSES
    assert counts(manifest) == {("train", c): 3 for c in CLASSES} | {("valid", c): 2 for c in CLASSES}


@pytest.mark.parametrize("wrapping", ["pets", "pets/2024", "train", "valid"])
def test_a_wrapping_folder(tmp_path: Path, wrapping: str) -> None:
    files = pictures(5)
    plain = scanned(tmp_path / "a", files)
    wrapped = scanned(tmp_path / "b", {f"{wrapping}/{k}": v for k, v in files.items()} | {"readme.md": b"x"})
    assert wrapped.root == str(tmp_path / "b" / wrapping)
    assert (wrapped.items, wrapped.digest, wrapped.classes) == (plain.items, plain.digest, plain.classes)


def test_pictures_may_lie_deeper(tmp_path: Path) -> None:
    manifest = scanned(tmp_path, pictures(3) | {"red/dark/wine/1.png": png(901), "red/dark/2.png": png(902)})
    assert sum(counts(manifest)[part, "red"] for part in ("train", "valid")) == 5


def test_classes_may_be_called_like_parts(tmp_path: Path) -> None:
    manifest = scanned(tmp_path, pictures(3, ("bus", "test", "train")))
    assert manifest.classes == ("bus", "test", "train")
    assert not manifest.has_own_split


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    droppings = {".DS_Store": b"x", "red/._1.png": b"x", ".hidden/1.png": b"x", "__MACOSX/red/1.png": b"x"}
    manifest = scanned(tmp_path, pictures() | droppings)
    assert len(manifest.items) == len(pictures())
    assert not manifest.bad_images


def test_bad_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    manifest = scanned(tmp_path, pictures() | BAD)
    assert {item.path for item in manifest.items} == set(pictures())
    reasons = {bad.path: bad.reason for bad in manifest.bad_images}
    assert set(reasons) == set(BAD)
    assert "truncated" in reasons["red/cut.png"]
    assert "is not a picture" in reasons["red/text.jpg"]
    assert reasons["green/bomb.png"] == "has 5000 × 5000 pixels, expected at most 1000000"
    assert manifest.digest == scanned(tmp_path / "good", pictures()).digest


def test_bad_pictures_are_refused_on_request(tmp_path: Path) -> None:
    message = refused(tmp_path, pictures() | BAD, bad_images="refuse")
    assert message.startswith("3 of 18 pictures cannot be used: ")
    assert all(path in message for path in BAD)


def test_many_bad_pictures_are_counted(tmp_path: Path) -> None:
    message = refused(tmp_path, pictures() | {f"red/{i}.jpg": b"x" for i in range(25)}, bad_images="refuse")
    assert message.endswith("; and 15 more")


def test_links_and_devices_are_no_pictures(tmp_path: Path) -> None:
    write(tmp_path / "secret", {"1.png": png(0)})
    root = write(tmp_path / "pets", pictures())
    (root / "red" / "link.png").symlink_to(tmp_path / "secret" / "1.png")
    os.mkfifo(root / "red" / "pipe.png")
    bad = scanned(root).bad_images
    assert [one.path for one in bad] == ["red/link.png", "red/pipe.png"]
    assert {one.reason for one in bad} == {"is a link or a device, expected a file"}


@pytest.mark.parametrize("place", ["yellow", "red/more", "train"])
def test_links_to_folders_are_refused(tmp_path: Path, place: str) -> None:
    write(tmp_path / "secret", {"1.png": png(0), "2.png": png(1)})
    root = write(tmp_path / "pets", pictures())
    (root / place).symlink_to(tmp_path / "secret")
    assert refused(root) == f"{place} is a link, expected a folder"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = write(tmp_path, pictures())
    path = os.fsencode(root) + b"/red/caf\xe9.png"
    with open(path, "wb") as file:  # noqa: PTH123  a Path cannot hold it
        file.write(png(0))
    (bad,) = scanned(root).bad_images
    assert (bad.path, bad.reason) == ("red/caf�.png", "has a name that is not in UTF-8")
    os.rename(path, os.fsencode(root) + b"/caf\xe9")  # noqa: PTH104
    os.remove(os.fsencode(root) + b"/caf\xe9")  # noqa: PTH107
    os.mkdir(os.fsencode(root) + b"/caf\xe9")  # noqa: PTH102
    assert "is not in UTF-8" in refused(root)


def test_accents_are_one_letter_in_class_names(tmp_path: Path) -> None:
    files = {f"{part}/{name}/{i}.png": png(i) for part, name in PARTED for i in range(2)}
    manifest = scanned(tmp_path, files)
    assert manifest.classes == ("caf\u00e9", "tea")
    assert any("cafe\u0301" in item.path for item in manifest.items)  # a path is as the disk has it


PARTED = (("train", "cafe\u0301"), ("train", "tea"), ("valid", "caf\u00e9"), ("valid", "tea"))

WRONG: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({}, "got no pictures, expected one folder of pictures per class"),
    "no pictures": (
        {"a/x.txt": b"x", "b/y.txt": b"y"},
        "the dataset has no pictures: its class folders are empty",
    ),
    "pictures only": ({"1.png": png(1)}, "got pictures outside of class folders, expected all in one folder per"),
    "pictures beside": (pictures() | {"1.png": png(1)}, "got pictures outside of class folders"),
    "one class": (pictures(classes=("cat",)), "got one class, 'cat', expected 2 or more"),
    "one wrapped class": (pictures(classes=("cat",), prefix="x/"), "got one class, 'cat', expected 2 or more"),
    "empty class": (pictures() | {"grey/": b""}, "class without pictures: grey/; add some, or remove the folder"),
    "class of text": (pictures() | {"grey/a.txt": b"x"}, "class without pictures: grey/;"),
    "bad class": (
        pictures() | {"grey/a.png": b"x"},
        "class without pictures that can be used: grey/a.png is not a picture",
    ),
    "all bad": (
        {"a/1.png": b"x", "b/1.png": b"y"},
        "the dataset has no pictures: all 2 cannot be used: a/1",
    ),
    "small class": (pictures() | {"grey/1.png": png(1)}, "class 'grey' is too small to split: got 1 picture"),
    "copies": (
        pictures() | {"grey/1.png": png(1), "grey/2.png": png(1)},
        "class 'grey' is too small to split: got 1 different picture",
    ),
    "cases": (pictures() | {"Red/1.png": png(1), "Red/2.png": png(2)}, "classes 'Red' and 'red' differ in case"),
    "train alone": (
        pictures(prefix="train/") | pictures(prefix="more/"),
        "got train/, more/, expected train/ and valid/, or one folder per class",
    ),
    "train and test": (
        pictures(prefix="train/") | pictures(prefix="test/"),
        "got train/, test/, expected train/ and valid/, or one folder per class (a folder of pictures that",
    ),
    "two validations": (
        pictures(prefix="train/") | pictures(prefix="val/") | pictures(prefix="valid/"),
        "got val/ and valid/, expected one folder of the valid part",
    ),
    "class not in valid": (
        pictures(prefix="train/") | pictures(classes=CLASSES[:2], prefix="valid/"),
        "train/ has class 'red', valid/ has not; expected the same in both",
    ),
    "class not in train": (
        pictures(prefix="train/") | pictures(classes=(*CLASSES, "grey"), prefix="val/"),
        "val/ has class 'grey', train/ has not",
    ),
    "case between parts": (
        pictures(classes=("cat", "dog"), prefix="train/") | pictures(classes=("cat", "Dog"), prefix="valid/"),
        "train/ has class 'dog', valid/ has not",
    ),
    "empty class of a part": (
        pictures(prefix="train/") | pictures(classes=CLASSES[:2], prefix="valid/") | {"valid/red/": b""},
        "class without pictures: valid/red/;",
    ),
    "one class of a part": (
        pictures(prefix="train/") | pictures(classes=("red",), prefix="valid/"),
        "valid/: got one class, 'red', expected 2 or more",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_a_dataset(tmp_path: Path, case: str) -> None:
    files, message = WRONG[case]
    tmp_path.mkdir(exist_ok=True)
    assert refused(tmp_path, files).startswith(message)


def test_too_many_pictures_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    one = folder_module.read_square
    monkeypatch.setattr(folder_module, "read_square", lambda *a, **k: (read.append(a), one(*a, **k))[1])
    root = write(tmp_path, {f"red/{i}.jpg": b"x" for i in range(300)} | {"blue/1.jpg": b"x"})
    with pytest.raises(
        DataError, match="too many pictures, expected at most 50, the server's max_archive_entries"
    ):
        scan("pets", root, ScanOptions(), max_pixels=1000, max_files=50, threads=1)
    assert len(read) <= 50


def test_copies_are_told_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = pictures(3, prefix="train/") | pictures(2, prefix="valid/")
    files |= {"valid/red/copy.png": files["train/red/0.png"], "train/blue/copy.png": files["train/green/1.png"]}
    with caplog.at_level(logging.WARNING):
        scanned(tmp_path, files)
    begin = "datasets/pets: 1 pictures have a copy"
    assert caplog.messages == [
        f"{begin} of another class, such as train/blue/copy.png and train/green/1.png",
        f"{begin} in the other part, such as train/red/0.png and valid/red/copy.png",
    ]


def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = write(tmp_path, pictures()), os.scandir

    def deny(path: Any) -> Any:
        if str(path).endswith("red"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert refused(root) == "folder red cannot be read: Permission denied"


def test_pictures_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, side: int, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder_module, "read_square", deny)
    message = refused(tmp_path, pictures(), bad_images="refuse")
    assert message.startswith("15 of 15 pictures cannot be used: blue/0.png cannot be read: Permission denied;")


def test_real_pictures(test_data: Path) -> None:
    manifest = scan("cats-dogs", test_data / "cats-dogs", ScanOptions(), max_pixels=10**7, max_files=10_000)
    assert manifest.classes == ("cat", "dog")
    assert counts(manifest) == {
        ("train", "cat"): 1000,
        ("train", "dog"): 1000,
        ("valid", "cat"): 500,
        ("valid", "dog"): 500,
    }
    assert manifest.has_own_split
    assert not manifest.bad_images
