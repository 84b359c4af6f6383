from __future__ import annotations

import dataclasses
import hashlib
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from pyserve.data import tensors
from pyserve.data.folder import ScanOptions, scan
from pyserve.data.images import decode_image, to_square
from pyserve.data.manifest import Manifest
from pyserve.data.tensors import load_part
from pyserve.errors import DataLossError
from tests.data.support import encoded, noise, small_manifest, write


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return small_manifest(tmp_path / "pets", {"train": 4, "valid": 2})


def test_a_part_is_its_pictures(tmp_path: Path, manifest: Manifest) -> None:
    part = load_part(manifest, "train", 10, tmp_path / "cache", threads=3)
    assert part.items == manifest.part_items("train")
    assert len(part) == 8
    assert part.labels.tolist() == [item.label for item in part.items] == [0] * 4 + [1] * 4
    assert part.labels.dtype == torch.int64
    assert (part.images.dtype, tuple(part.images.shape)) == (torch.uint8, (8, 3, 10, 10))
    for image, item in zip(part.images, part.items, strict=True):
        expected = to_square(decode_image(Path(manifest.root, item.path), max_pixels=10**6), 10)
        assert abs(image.numpy().astype(int) - expected).max() <= 1  # resampled by PyTorch here, by Pillow there


def test_it_is_decoded_once(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_part(manifest, "valid", 10, tmp_path / "cache")
    monkeypatch.setattr(tensors, "read_square", lambda *a, **k: pytest.fail("decoded again"))
    assert torch.equal(load_part(manifest, "valid", 10, tmp_path / "cache").images, first.images)
    copy = dataclasses.replace(manifest, dataset_id="copy", root="/gone")
    assert torch.equal(load_part(copy, "valid", 10, tmp_path / "cache").images, first.images)


def test_presizes_parts_and_digests_are_kept_apart(tmp_path: Path, manifest: Manifest) -> None:
    other = small_manifest(tmp_path / "other", {"train": 4, "valid": 2}, digest="e" * 64)
    write(Path(other.root), {item.path: encoded(noise(9)) for item in other.items})
    parts = [
        load_part(m, part, size, tmp_path / "cache")
        for m in (manifest, other)
        for part in ("train", "valid")
        for size in (8, 9)
    ]
    assert len({part.images.numpy().tobytes() for part in parts}) == 8


def test_progress_counts_every_picture(tmp_path: Path, manifest: Manifest) -> None:
    told: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.get_ident())

    load_part(manifest, "train", 10, tmp_path, progress=progress)
    assert told == [(done, 8) for done in range(9)]
    load_part(manifest, "train", 10, tmp_path, progress=progress)
    assert told[9:] == [(0, 8)]
    assert threads == {threading.get_ident()}  # where an exception of it ends the work


def test_progress_may_end_the_work(tmp_path: Path, manifest: Manifest) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise InterruptedError

    threads = threading.active_count()
    with pytest.raises(InterruptedError):
        load_part(manifest, "train", 10, tmp_path, progress=stop)
    assert threading.active_count() == threads
    assert len(load_part(manifest, "train", 10, tmp_path)) == 8


def test_an_empty_part(tmp_path: Path) -> None:
    part = load_part(small_manifest(tmp_path, {"train": 2}), "valid", 10, tmp_path)
    assert tuple(part.images.shape) == (0, 3, 10, 10)
    assert len(part.labels) == len(part) == 0


def hashed(manifest: Manifest) -> Manifest:
    """With the checksums that a scan would tell."""
    items = tuple(
        dataclasses.replace(i, sha256=hashlib.sha256(Path(manifest.root, i.path).read_bytes()).hexdigest())
        for i in manifest.items
    )
    return dataclasses.replace(manifest, items=items)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"hello", "is not a picture that can be read here"),
        (encoded(noise(99)), "has changed since the dataset was made: make it again"),
    ],
)
def test_a_picture_that_is_no_longer_the_same(
    tmp_path: Path, manifest: Manifest, content: bytes | None, reason: str
) -> None:
    manifest = hashed(manifest)
    path = Path(manifest.root, "dog/train-1.png")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataLossError, match=f"datasets/pets: dog/train-1.png {reason}") as info:
        load_part(manifest, "train", 10, tmp_path / "cache")
    assert str(tmp_path) not in info.value.message
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_scanned_folder_can_be_loaded(tmp_path: Path) -> None:
    """What the scan took is what loading takes, whatever the format."""
    files = {
        f"{name}/{index}.{kind}": encoded(Image.fromarray(noise(index + 10 * label, 40, 30)), kind.upper())
        for label, name in enumerate(("cat", "dog"))
        for index, kind in enumerate(["png", "jpeg", "bmp", "gif", "webp", "tiff"])
    }
    found = scan("pets", write(tmp_path, files), ScanOptions(), max_pixels=10**6, max_files=100)
    assert len(found.items) == 12
    sizes = [len(load_part(found, part, 16, tmp_path / "cache")) for part in ("train", "valid")]
    assert sum(sizes) == 12
    assert min(sizes) == 2


def test_real_pictures(test_data: Path, tmp_path: Path) -> None:
    found = scan("pets", test_data / "cats-dogs-oxford", ScanOptions(), max_pixels=10**7, max_files=10_000)
    part = load_part(found, "valid", 32, tmp_path)
    assert len(part) == 148
    assert 60 < float(part.images.float().mean()) < 180
    assert (part.images.float().std((1, 2, 3)) > 5).all()
