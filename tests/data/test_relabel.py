"""Corrected versions of datasets: new names, the old ones untouched, every change remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyserve.config import Settings
from pyserve.data.catalog import Catalog
from pyserve.data.manifest import Correction, Manifest, digest_of
from pyserve.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, InvalidArgumentError
from tests.data.support import pictures, tree, write, zipped


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog(tmp_path / "data", Settings(dataset_roots=[tmp_path / "roots"]))
    archive = tmp_path / "upload.part"
    archive.write_bytes(zipped(pictures(prefix="pets/")))
    made.add_archive("pets", archive)
    return made


def labels_of(manifest: Manifest) -> dict[str, str]:
    return {item.path: manifest.classes[item.label] for item in manifest.items}


def parts_of(manifest: Manifest) -> dict[str, str]:
    return {item.path: item.part for item in manifest.items}


def test_a_new_version_has_the_corrected_labels_and_the_old_one_its_own(catalog: Catalog) -> None:
    old = catalog.get("datasets/pets")
    new = catalog.relabel("datasets/pets", {"red/0.png": "blue", "green/1.png": "red"}, ["blue/2.png"])
    assert new.name == "datasets/pets-v2"
    expected = labels_of(old) | {"red/0.png": "blue", "green/1.png": "red"}
    del expected["blue/2.png"]
    assert labels_of(new) == expected
    assert parts_of(new) == {path: part for path, part in parts_of(old).items() if path != "blue/2.png"}
    assert catalog.get("datasets/pets") == old
    assert catalog.get("datasets/pets-v2") == new
    assert new.digest == digest_of(new.classes, new.items) != old.digest
    assert [item.label for item in new.items] == sorted(item.label for item in new.items)
    assert new.size_bytes == sum(Path(new.root, item.path).stat().st_size for item in new.items) > 0


def test_what_it_was_made_from_is_remembered(catalog: Catalog) -> None:
    old = catalog.get("datasets/pets")
    new = catalog.relabel("datasets/pets", {"red/0.png": "blue"}, ["blue/2.png"])
    assert new.origin is not None
    assert (new.origin.dataset, new.origin.digest) == ("datasets/pets", old.digest)
    assert new.origin.corrections == (
        Correction("red/0.png", "red", "blue"),
        Correction("blue/2.png", "blue", ""),
    )
    assert (old.version, new.version) == (1, 2)
    third = catalog.relabel("datasets/pets-v2", {"red/0.png": "green"})
    assert (third.name, third.version) == ("datasets/pets-v3", 3)
    assert third.origin is not None
    assert third.origin.corrections == (Correction("red/0.png", "blue", "green"),)


def test_names_that_are_free(catalog: Catalog) -> None:
    assert catalog.relabel("datasets/pets", {"red/0.png": "blue"}).dataset_id == "pets-v2"
    assert catalog.relabel("datasets/pets", {"red/1.png": "blue"}).dataset_id == "pets-v3"
    assert catalog.relabel("datasets/pets", {"red/1.png": "blue"}, dataset_id="clean").dataset_id == "clean"
    with pytest.raises(AlreadyExistsError, match="datasets/clean exists"):
        catalog.relabel("datasets/pets", {"red/1.png": "blue"}, dataset_id="clean")


def test_long_names_are_cut(tmp_path: Path, catalog: Catalog) -> None:
    catalog.add_archive("p" * 63, tmp_path / "upload.part")
    new = catalog.relabel(f"datasets/{'p' * 63}", {"red/0.png": "blue"})
    assert new.dataset_id == "p" * 60 + "-v2"


def test_uploaded_pictures_are_shared_and_outlive_the_old_version(catalog: Catalog) -> None:
    old = catalog.get("datasets/pets")
    new = catalog.relabel("datasets/pets", {"red/0.png": "blue"})
    assert new.root != old.root
    assert Path(new.root, "red/0.png").samefile(Path(old.root, "red/0.png"))
    catalog.delete("datasets/pets")
    assert set(tree(Path(new.root))) == {item.path for item in new.items}


def test_registered_pictures_stay_where_they_are(tmp_path: Path, catalog: Catalog) -> None:
    folder = write(tmp_path / "roots" / "birds", pictures())
    old = catalog.register("birds", folder)
    new = catalog.relabel("datasets/birds", {"red/0.png": "blue"})
    assert new.root == old.root
    before = tree(folder)
    catalog.delete("datasets/birds-v2")
    assert tree(folder) == before


BAD: dict[str, tuple[dict[str, str], list[str], str]] = {
    "nothing": ({}, [], "corrections: got 'none', expected at least one"),
    "no such picture": (
        {"red/99.png": "blue"},
        [],
        r"corrections\.path: got 'red/99\.png', expected a picture of data",
    ),
    "none to remove": ({}, ["x"], "removed: got 'x', expected a picture of datasets/pets"),
    "no such class": (
        {"red/0.png": "pink"},
        [],
        r"corrections\.label: got 'pink', expected one of blue, green, red",
    ),
    "as it was": (
        {"red/0.png": "red"},
        [],
        r"corrections\.label: got 'red', expected another label than red/0\.png",
    ),
    "both": ({"red/0.png": "blue"}, ["red/0.png"], r"removed: got 'red/0\.png', expected each picture once"),
    "twice": ({}, ["red/0.png", "red/0.png"], r"removed: got 'red/0\.png', expected each picture once"),
}


@pytest.mark.parametrize("kind", BAD)
def test_corrections_that_cannot_be(catalog: Catalog, kind: str) -> None:
    labels, removed, sentence = BAD[kind]
    with pytest.raises(InvalidArgumentError, match=sentence):
        catalog.relabel("datasets/pets", labels, removed)
    assert len(catalog.list()[0]) == 1


def test_a_class_may_not_lose_all_its_pictures(catalog: Catalog) -> None:
    everything: dict[str, Any] = {path: "blue" for path in pictures() if path.startswith("red/")}
    with pytest.raises(
        FailedPreconditionError, match="class 'red' of datasets/pets would have no pictures in its train"
    ):
        catalog.relabel("datasets/pets", everything)
    valid = [item.path for item in catalog.get("datasets/pets").part_items("valid")]
    with pytest.raises(FailedPreconditionError, match="the valid part of datasets/pets would be empty"):
        catalog.relabel("datasets/pets", {}, valid)


def test_a_picture_that_is_gone_is_told(catalog: Catalog) -> None:
    Path(catalog.get("datasets/pets").root, "red/1.png").unlink()
    with pytest.raises(DataLossError, match="datasets/pets: a picture is gone: No such file"):
        catalog.relabel("datasets/pets", {"red/0.png": "blue"})
