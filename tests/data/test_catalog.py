from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pyserve.config import Settings
from pyserve.data import catalog as catalog_module
from pyserve.data.cache import array_path
from pyserve.data.catalog import Catalog
from pyserve.data.folder import ScanOptions
from pyserve.data.names import CACHE_FOLDER
from pyserve.errors import (
    AlreadyExistsError,
    DataError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from tests.data.support import pictures, png, tarred, tree, write, zipped


def make(folder: Path, **settings: Any) -> Catalog:
    return Catalog(folder / "data", Settings(**settings))


def archive(folder: Path, data: bytes | None = None) -> Path:
    path = folder / "upload.part"
    path.write_bytes(zipped(pictures()) if data is None else data)
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_becomes_a_dataset(tmp_path: Path, pack: Any) -> None:
    upload = archive(tmp_path, pack(pictures(prefix="pets/")))
    manifest = make(tmp_path).add_archive("pets", upload)
    assert manifest.name == "datasets/pets"
    assert {item.path for item in manifest.items} == set(pictures())
    assert tree(Path(manifest.root).parent) == pictures(prefix="pets/")
    assert Path(manifest.root) == tmp_path / "data" / "datasets" / "pets" / "images" / "pets"
    assert upload.exists()
    assert Catalog(tmp_path / "data").get("datasets/pets") == manifest


def test_options_are_followed(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    plain = catalog.add_archive("plain", archive(tmp_path))
    half = catalog.add_archive("half", archive(tmp_path), ScanOptions(valid_fraction=0.5))
    assert len(half.part_items("valid")) > len(plain.part_items("valid"))
    with pytest.raises(DataError, match=r"red/x\.png"):
        catalog.add_archive("strict", archive(tmp_path, zipped(pictures() | {"red/x.png": b"x"})), STRICT)


STRICT = ScanOptions(bad_images="refuse")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"max_archive_entries": 15}, "max_archive_entries"),
        ({"max_archive_bytes": 5000}, "max_archive_bytes"),
        ({"max_compression_ratio": 1.2}, "max_compression_ratio"),
        ({"max_image_pixels": 100}, "has 16 × 12 pixels, expected at most 100"),
    ],
)
def test_settings_are_limits(tmp_path: Path, settings: dict[str, Any], names: str) -> None:
    packed = zipped(pictures() | {"notes.txt": bytes(9000)})
    with pytest.raises(DataError, match=names):
        make(tmp_path, **settings).add_archive("pets", archive(tmp_path, packed))
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"nothing", zipped({"../x": b"y"}), zipped({"a/1.png": png(1)})])
def test_nothing_is_left_of_a_bad_archive(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError):
        make(tmp_path).add_archive("pets", archive(tmp_path, data))
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


def test_nothing_is_left_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalog_module, "sync_file", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path).add_archive("pets", archive(tmp_path))
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


@pytest.mark.parametrize("dataset_id", ["", "Pets", "a/b", "..", "x" * 64])
def test_ids_that_cannot_be(tmp_path: Path, dataset_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match="dataset_id: got"):
        make(tmp_path).add_archive(dataset_id, archive(tmp_path))


@pytest.mark.parametrize("name", ["pets", "datasets/", "datasets/a/b", "datasets/../x", "models/pets"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    catalog = make(tmp_path)
    for method in (catalog.get, catalog.delete):
        with pytest.raises(InvalidArgumentError, match=r"name: got .* expected datasets/{dataset_id}"):
            method(name)


def test_what_is_missing_is_told_with_what_exists(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    with pytest.raises(NotFoundError, match="datasets/pets does not exist; no dataset exists yet: upload"):
        catalog.get("datasets/pets")
    for index in range(12):
        catalog.add_archive(f"set-{index:02}", archive(tmp_path))
    with pytest.raises(NotFoundError, match=r"existing: datasets/set-00, .*datasets/set-09 and 2 more$"):
        catalog.delete("datasets/pets")


def test_a_name_is_given_once(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    first = catalog.add_archive("pets", archive(tmp_path))
    with pytest.raises(AlreadyExistsError, match="datasets/pets exists already"):
        catalog.add_archive("pets", archive(tmp_path, b"not even read"))
    assert catalog.get("datasets/pets") == first


def test_of_two_writers_at_once_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, upload = make(tmp_path), archive(tmp_path)
    barrier, scan = threading.Barrier(2, timeout=30), catalog_module.scan

    def together(*args: Any, **options: Any) -> Any:
        barrier.wait()
        return scan(*args, **options)

    monkeypatch.setattr(catalog_module, "scan", together)
    outcomes: list[Any] = []

    def add() -> None:
        try:
            outcomes.append(catalog.add_archive("pets", upload).name)
        except AlreadyExistsError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(outcomes) == {"datasets/pets", AlreadyExistsError}
    assert [p.name for p in (tmp_path / "data" / "datasets").iterdir()] == ["pets"]


def test_listing_newest_first_in_pages(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    for index in range(5):
        catalog.add_archive(f"set-{index}", archive(tmp_path))
        path = tmp_path / "data" / "datasets" / f"set-{index}" / "manifest.json"
        os.utime(path, ns=(10**18, 10**18 + index // 2))  # some of one age
    everything, token = catalog.list()
    assert ([m.dataset_id for m in everything], token) == (["set-4", "set-2", "set-3", "set-0", "set-1"], "")
    pages, token = [], ""
    while True:
        page, token = catalog.list(2, token)
        pages.append([m.dataset_id for m in page])
        catalog.add_archive(f"later-{len(pages)}", archive(tmp_path))  # does not shift the pages
        if not token:
            break
    assert pages == [["set-4", "set-2"], ["set-3", "set-0"], ["set-1"]]


def test_pages_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="page_size: got -1"):
        make(tmp_path).list(-1)
    for token in ("x", "bm90IGpzb24=", "WzFd"):
        with pytest.raises(InvalidArgumentError, match="page_token: got"):
            make(tmp_path).list(0, token)


def test_damage_is_told_and_left_out_of_the_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = make(tmp_path)
    for name in ("good", "bad"):
        catalog.add_archive(name, archive(tmp_path))
    (tmp_path / "data" / "datasets" / "bad" / "manifest.json").write_text("{}")
    with pytest.raises(DataLossError, match=r"datasets/bad: manifest.json is damaged"):
        catalog.get("datasets/bad")
    assert [m.dataset_id for m in catalog.list()[0]] == ["good"]
    assert "left out of the list of datasets: datasets/bad" in caplog.text
    catalog.delete("datasets/bad")
    assert [p.name for p in (tmp_path / "data" / "datasets").iterdir()] == ["good"]


def test_deleting_takes_pictures_and_cache(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    manifest = catalog.add_archive("pets", archive(tmp_path))
    cached = array_path(tmp_path / "data" / CACHE_FOLDER, manifest.digest, "train", 32)
    other = array_path(tmp_path / "data" / CACHE_FOLDER, "e" * 64, "train", 32)
    for path in (cached, other):
        write(path.parent, {path.name: b"x"})
    catalog.delete("datasets/pets")
    assert not cached.parent.exists()
    assert other.exists()
    assert list((tmp_path / "data" / "datasets").iterdir()) == []
    with pytest.raises(NotFoundError):
        catalog.get("datasets/pets")
    assert catalog.add_archive("pets", archive(tmp_path)).digest == manifest.digest


@pytest.mark.parametrize("relative", [True, False])
def test_registering(tmp_path: Path, relative: bool) -> None:
    root = write(tmp_path / "roots", {f"shelf/{k}": v for k, v in pictures().items()})
    catalog = make(tmp_path, dataset_roots=[tmp_path / "elsewhere", root])
    manifest = catalog.register("shelf", Path("shelf") if relative else root / "shelf")
    assert manifest.root == str(root / "shelf")
    assert catalog.get("datasets/shelf") == manifest
    catalog.delete("datasets/shelf")
    assert tree(root / "shelf") == pictures()


def test_registering_through_a_link_that_stays_inside(tmp_path: Path) -> None:
    root = write(tmp_path / "roots", {f"shelf/{k}": v for k, v in pictures().items()})
    (root / "link").symlink_to(root / "shelf")
    assert make(tmp_path, dataset_roots=[root]).register("pets", Path("link")).root == str(root / "shelf")


@pytest.mark.parametrize("path", ["../secret", "way-out", "way-out/deeper", "/etc", "{secret}", "../nowhere"])
def test_folders_outside_the_roots(tmp_path: Path, path: str) -> None:
    """The answer is the same whether there is such a folder or not."""
    secret = write(tmp_path / "secret", pictures())
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "way-out").symlink_to(secret)
    catalog = make(tmp_path, dataset_roots=[tmp_path / "roots"])
    with pytest.raises(PermissionDeniedError, match="expected a folder under one of the server's dataset_roots"):
        catalog.register("pets", Path(path.format(secret=secret)))


def test_a_server_without_roots_registers_nothing(tmp_path: Path) -> None:
    with pytest.raises(PermissionDeniedError, match="the server has no dataset_roots"):
        make(tmp_path).register("pets", tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    catalog = make(tmp_path, dataset_roots=[tmp_path / "roots"])
    with pytest.raises(NotFoundError, match="path: got 'nowhere', expected a folder that exists") as info:
        catalog.register("pets", Path("nowhere"))
    assert str(tmp_path) not in info.value.message


def test_leftovers_of_a_crash_go(tmp_path: Path) -> None:
    make(tmp_path)
    write(tmp_path / "data" / "datasets", {".new-0123/images/1.png": b"x"})
    make(tmp_path)
    assert list((tmp_path / "data" / "datasets").iterdir()) == []
