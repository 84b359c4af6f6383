from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from tests import cifar10
from tests.conftest import ROOT

TEST_SHA256 = "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"  # of the original test images


def test_the_test_images_are_the_original_ones(test_data: Path) -> None:
    images, labels = cifar10.read(test_data, "test")
    assert hashlib.sha256(images.tobytes()).hexdigest() == TEST_SHA256
    assert np.bincount(labels).tolist() == [1000] * 10


def test_single_files_come_with_their_labels(test_data: Path) -> None:
    images, labels = cifar10.read(test_data, "test")
    some, their = cifar10.read(test_data, "test", [3, 1])
    assert np.array_equal(some, np.concatenate([images[3000:4000], images[1000:2000]]))
    assert np.array_equal(their, np.concatenate([labels[3000:4000], labels[1000:2000]]))
    train, labels = cifar10.read(test_data, "train", [49])
    assert train.shape == (1000, 32, 32, 3)
    assert labels.shape == (1000,)


def test_class_folders_hold_the_images(test_data: Path, tmp_path: Path) -> None:
    write_folders = runpy.run_path(str(ROOT / "benchmarks" / "cifar10_folders.py"))["write_folders"]
    write_folders(test_data, tmp_path, 150)
    images, labels = cifar10.read(test_data, "test", [0])
    for part in ("train", "valid"):
        assert sorted(p.name for p in (tmp_path / part).iterdir()) == sorted(cifar10.CLASSES)
        assert len(list((tmp_path / part).glob("*/*.png"))) == 150
    for number in (0, 149):
        path = tmp_path / "valid" / cifar10.CLASSES[labels[number]] / f"{number:05}.png"
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), images[number])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    write_folders(test_data, tmp_path, 150)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
