"""Top patches and their evolution: planted filters find their stripes, at the right places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyserve.data.manifest import Manifest
from pyserve.data.tensors import load_part
from pyserve.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from pyserve.inference.probe import Probe
from pyserve.insight.evolution import evolution
from pyserve.insight.top_patches import top_patches
from tests.insight.networks import SIDE, UPRIGHT, Planted, dataset, planted, preprocessing, stripe


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Columns of growing brightness at known places, rows, and noise."""
    rng = np.random.default_rng(0)
    pictures = {f"valid/column/{i:02}.png": stripe(column=i + 2, colour=(100 + 10 * i,) * 3) for i in range(12)}
    pictures |= {f"valid/row/{i:02}.png": stripe(row=i + 2) for i in range(6)}
    pictures |= {f"valid/noise/{i:02}.png": rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8) for i in range(6)}
    pictures |= {path.replace("valid", "train"): pixels for path, pixels in pictures.items()}
    return dataset(tmp_path_factory.mktemp("planted"), pictures)


def test_a_filter_for_columns_finds_the_brightest(manifest: Manifest, tmp_path: Path) -> None:
    found = top_patches(planted(), manifest, "valid", "relu", tmp_path, channels=[0, 3], count=4)
    assert (found.layer.name, found.field) == ("relu", (3, 3))
    columns, dead = found.channels
    assert columns.channel == 0
    assert [p.path for p in columns.patches] == [f"valid/column/{i:02}.png" for i in (11, 10, 9, 8)]
    activations = [p.activation for p in columns.patches]
    assert activations == sorted(activations, reverse=True)
    for patch, i in zip(columns.patches, (11, 10, 9, 8), strict=True):
        assert patch.column == i + 2
        assert manifest.classes[patch.label] == "column"
        assert (patch.box.left, patch.box.right) == (i + 1, i + 4)
        assert patch.box.bottom - patch.box.top == 3
        assert patch.pixels.shape == (3, 3, 3)
        assert (patch.pixels[:, 1] == 100 + 10 * i).all()
        assert (patch.pixels[:, [0, 2]] == 0).all()
        if 0 < patch.row < SIDE - 1:
            assert patch.projection[1] == pytest.approx(patch.activation * UPRIGHT.numpy() / 3, abs=1e-5)
    assert dead.patches == ()  # feature map 3 is never active


def test_the_strongest_feature_maps_are_taken_by_default(manifest: Manifest, tmp_path: Path) -> None:
    probe = planted()
    found = top_patches(probe, manifest, "valid", "relu", tmp_path, channel_count=2, count=1)
    assert {c.channel for c in found.channels} == {0, 1}
    rows = next(c for c in found.channels if c.channel == 1)
    assert rows.patches[0].path.startswith("valid/row/")


def test_a_search_over_all_pictures_finds_the_same(manifest: Manifest, tmp_path: Path) -> None:
    """Against a pass over every picture by itself, batches and ties and all."""
    probe = planted()
    found = top_patches(probe, manifest, "valid", "conv", tmp_path, channels=[0, 1, 2], count=9)
    data = load_part(manifest, "valid", SIDE, tmp_path)
    with torch.no_grad():
        each = [probe.run(probe.prepare(data.images[i : i + 1]), ["conv"])[0]["conv"][0] for i in range(len(data))]
        peaks = torch.stack([output.amax((1, 2)) for output in each])
    for channel in found.channels:
        best = peaks[:, channel.channel].sort(descending=True).values[: len(channel.patches)]
        assert [p.activation for p in channel.patches] == pytest.approx(best.tolist(), abs=1e-5)
        assert all(p.activation > 0 for p in channel.patches)


class Capped(Planted):
    """Its activations reach a ceiling in many pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = torch.nn.ReLU6()
        with torch.no_grad():
            self.conv.weight *= 100


def test_of_equals_those_in_strong_surroundings_come_first(tmp_path: Path) -> None:
    wide = np.zeros((SIDE, SIDE, 3), np.uint8)
    wide[:, 3::4] = 255
    pictures = {f"valid/a/{i}.png": stripe(column=3 + i) for i in range(5)} | {"valid/b/many.png": wide}
    pictures |= {path.replace("valid", "train"): pixels for path, pixels in pictures.items()}
    found = top_patches(
        Probe(Capped(), preprocessing()),
        dataset(tmp_path, pictures),
        "valid",
        "relu",
        tmp_path,
        channels=[0],
        count=2,
    )
    assert [p.activation for p in found.channels[0].patches] == [6, 6]
    assert found.channels[0].patches[0].path == "valid/b/many.png"


def test_evolution_follows_the_feature_maps_of_the_end(manifest: Manifest, tmp_path: Path) -> None:
    """Before training feature map 0 saw nothing, then rows, then columns."""

    def after(first: int) -> Probe:
        net = Planted()
        with torch.no_grad():
            net.conv.weight[0] = net.conv.weight[first]
            net.conv.bias[0] = net.conv.bias[first]
        return Probe(net, preprocessing())

    stages = [(1, lambda: after(3)), (2, lambda: after(1)), (5, lambda: after(0))]
    found = evolution(stages, manifest, "valid", "relu", tmp_path, channel_count=2)
    assert found.epochs == (1, 2, 5)
    assert found.rule == "guided"  # no pooling at all
    row = next(r for r in found.rows if r.channel == 0)
    assert row.patches[0] is None
    assert row.patches[1] is not None
    assert row.patches[1].path.startswith("valid/row/")
    assert row.patches[2] is not None
    assert row.patches[2].path == "valid/column/11.png"


def test_bad_questions(manifest: Manifest, tmp_path: Path) -> None:
    probe = planted()
    with pytest.raises(InvalidArgumentError, match="layer: got 'x'"):
        top_patches(probe, manifest, "valid", "x", tmp_path)
    with pytest.raises(InvalidArgumentError, match="channels: got 9, expected 0 to 3 of relu"):
        top_patches(probe, manifest, "valid", "relu", tmp_path, channels=[9])
    with pytest.raises(InvalidArgumentError, match="count: got 17, expected 1 to 16"):
        top_patches(probe, manifest, "valid", "relu", tmp_path, count=17)
    with pytest.raises(CancelledError, match="stopped while"):
        top_patches(probe, manifest, "valid", "relu", tmp_path, should_stop=lambda: True)
    with pytest.raises(InvalidArgumentError, match="snapshots: got 'none'"):
        evolution([], manifest, "valid", "relu", tmp_path)


def test_a_part_without_pictures(manifest: Manifest, tmp_path: Path) -> None:
    empty = Manifest(**{**vars(manifest), "items": manifest.part_items("train")})
    with pytest.raises(FailedPreconditionError, match="datasets/planted has no pictures in its valid part"):
        top_patches(planted(), empty, "valid", "relu", tmp_path)
