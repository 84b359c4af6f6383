"""Embeddings of datasets, and results that are shared between callers."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pyserve.data.manifest import Manifest
from pyserve.errors import CancelledError, FailedPreconditionError
from pyserve.insight.embedding import embed
from pyserve.insight.shared import SharedResults
from tests.insight.networks import SIDE, dataset, planted


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    rng = np.random.default_rng(0)
    paths = [f"{part}/{name}/{i}.png" for part in ("train", "valid") for name in ("a", "b") for i in range(3)]
    pictures = {path: rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for path in paths}
    return dataset(tmp_path_factory.mktemp("some"), pictures)


def test_features_are_what_the_head_sees(manifest: Manifest, tmp_path: Path) -> None:
    probe = planted()
    found = embed(probe, manifest, ("train", "valid"), tmp_path)
    assert len(found) == 12
    assert found.features.shape == (12, 4)
    assert found.parts == ("train",) * 6 + ("valid",) * 6
    assert [found.paths[i].split("/")[1] for i in range(12)] == [found.classes[t] for t in found.targets]
    from PIL import Image

    for i in (0, 7):
        pixels = np.asarray(Image.open(Path(manifest.root, found.paths[i])))
        x = torch.from_numpy((pixels / 255 - 0.5) / 0.5).float().permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = torch.relu(probe.model.conv(x)).mean((2, 3))[0]
        assert found.features[i] == pytest.approx(expected.numpy(), abs=1e-5)
        grey = pixels.mean(axis=2).repeat(2, axis=0).repeat(2, axis=1)  # 16 pixels are enlarged to 32
        assert found.thumbnails[i] == pytest.approx(grey, abs=1)


def test_one_part_and_no_pictures(manifest: Manifest, tmp_path: Path) -> None:
    assert set(embed(planted(), manifest, ("valid",), tmp_path).parts) == {"valid"}
    empty = Manifest(**{**vars(manifest), "items": ()})
    with pytest.raises(FailedPreconditionError, match="no pictures in its train and valid part"):
        embed(planted(), empty, ("train", "valid"), tmp_path)
    with pytest.raises(CancelledError, match="embedding of 12 pictures was stopped"):
        embed(planted(), manifest, ("train", "valid"), tmp_path, lambda: True)


def test_a_result_is_made_once_for_all_who_ask() -> None:
    shared: SharedResults[str, int] = SharedResults(2)
    begun, go = threading.Event(), threading.Event()
    made: list[int] = []

    def make() -> int:
        begun.set()
        go.wait(10)
        made.append(1)
        return 7

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(shared.get("k", make))) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert results == [7, 7, 7]
    assert made == [1]


def test_who_waits_goes_on_where_the_first_caller_gave_up() -> None:
    shared: SharedResults[str, int] = SharedResults(2)
    begun, gone = threading.Event(), threading.Event()

    def abandoned() -> int:
        begun.set()
        gone.wait(10)
        raise CancelledError("its caller is gone")

    def first() -> None:
        with pytest.raises(CancelledError):
            shared.get("k", abandoned, lambda: True)

    results: list[int] = []
    one = threading.Thread(target=first)
    one.start()
    begun.wait(10)
    two = threading.Thread(target=lambda: results.append(shared.get("k", lambda: 9, lambda: False)))
    two.start()
    gone.set()
    one.join(10)
    two.join(10)
    assert results == [9]
