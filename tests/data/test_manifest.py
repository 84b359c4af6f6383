from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyserve.data.manifest import BadImage, Item, Manifest, digest_of
from pyserve.errors import DataLossError

ITEMS = (Item("cat/é.png", 0, "train", "a" * 64), Item("dog/1.png", 1, "train"), Item("dog/2.png", 1, "valid"))


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "dataset_id": "pets",
        "root": "/pictures",
        "classes": ("cat", "dog"),
        "items": ITEMS,
        "bad_images": (BadImage("cat/x.png", "cannot be decoded"),),
        "has_own_split": True,
        "size_bytes": 7,
        "digest": "d" * 64,
        "create_time": 12.5,
    }
    return Manifest(**(fields | changes))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    manifest().save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json", "datasets/pets") == manifest()


def test_pictures_beside_the_manifest_move_with_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    manifest(root=str(tmp_path / "a" / "images" / "pets")).save(tmp_path / "a" / "manifest.json")
    shutil.move(tmp_path / "a", tmp_path / "b")
    loaded = Manifest.load(tmp_path / "b" / "manifest.json", "datasets/pets")
    assert loaded.root == str(tmp_path / "b" / "images" / "pets")


def test_parts() -> None:
    assert manifest().name == "datasets/pets"
    assert manifest().part_items("train") == ITEMS[:2]
    assert manifest().part_items("valid") == ITEMS[2:]


def damaged(**changes: object) -> str:
    fields = json.loads(json.dumps(dataclasses.asdict(manifest())))
    return json.dumps(fields | changes)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "damaged"),
        ("{}", "dataset_id"),
        (damaged(items=[{"path": "a", "label": 0, "part": "test"}]), "items.0.part"),
        (damaged(items=[{"path": "a", "label": 2, "part": "train"}]), "a label without a class"),
        (damaged(size_bytes="many"), "size_bytes"),
    ],
)
def test_damage_is_told(tmp_path: Path, text: str, names: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataLossError, match=names) as info:
        Manifest.load(tmp_path / "manifest.json", "datasets/pets")
    assert info.value.message.startswith("datasets/pets: manifest.json is damaged: ")
    assert str(tmp_path) not in info.value.message


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DataLossError, match=r"datasets/pets: manifest.json cannot be read: Is a directory"):
        Manifest.load(tmp_path / "manifest.json", "datasets/pets")
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "other.json", "datasets/pets")


def test_the_digest_is_that_of_the_dataset() -> None:
    digest = digest_of(("cat", "dog"), ITEMS)
    assert len(digest) == 64
    assert digest == digest_of(("cat", "dog"), ITEMS[::-1])
    others = [
        digest_of(("cow", "dog"), ITEMS),
        digest_of(("cat", "dog"), ITEMS[:2]),
        *(
            digest_of(("cat", "dog"), (dataclasses.replace(ITEMS[0], **change), *ITEMS[1:]))
            for change in ({"path": "cat/e.png"}, {"label": 1}, {"part": "valid"}, {"sha256": "b" * 64})
        ),
    ]
    assert len({digest, *others}) == 7
