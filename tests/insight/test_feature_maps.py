"""Feature maps and filters of a network with planted ones."""

from __future__ import annotations

import numpy as np
import pytest

from pyserve.errors import InvalidArgumentError
from pyserve.insight.feature_maps import feature_maps, first_filters
from tests.insight.networks import SIDE, UPRIGHT, batch, planted, registered, stripe
from tests.models.support import pictures


def test_maps_are_the_layers_output() -> None:
    probe = planted()
    picture = batch(stripe(column=5))
    found = feature_maps(probe, picture, "relu", [1, 0])
    assert found.channels == (1, 0)
    assert found.maps.shape == (2, SIDE, SIDE)
    assert (found.maps[1][2:-2, 5] == found.maps[1].max()).all()  # bright columns
    assert found.maps[0][2:-2].max() == 0  # bright rows: only where the stripe ends at the edge
    expected = np.zeros((SIDE, SIDE, 3))
    expected[:, 5] = 1
    assert found.picture == pytest.approx(expected)


def test_by_default_the_strongest_come_first() -> None:
    probe = registered("resnet20")
    picture = (pictures(1, 3, 32, 32).sigmoid() * 255).byte()
    found = feature_maps(probe, picture, "layer2", count=5)
    every = feature_maps(probe, picture, "layer2", range(32))
    peaks = every.maps.max(axis=(1, 2))
    assert list(found.channels) == np.argsort(-peaks, kind="stable")[:5].tolist()
    assert np.array_equal(found.maps, every.maps[list(found.channels)])


def test_first_filters_are_the_planted_ones() -> None:
    name, weights = first_filters(planted())
    assert name == "conv"
    assert weights.shape == (4, 3, 3, 3)
    assert weights[0] == pytest.approx(np.stack([UPRIGHT.numpy() / 3] * 3))
    assert first_filters(registered("mobilenet_v2"))[0] == "features.0.0"


def test_bad_questions() -> None:
    probe = planted()
    picture = batch(stripe(column=5))
    with pytest.raises(InvalidArgumentError, match="layer: got 'x', expected one of conv, relu, pool"):
        feature_maps(probe, picture, "x")
    with pytest.raises(InvalidArgumentError, match="channels: got 4, expected 0 to 3 of relu"):
        feature_maps(probe, picture, "relu", [0, 4])
    with pytest.raises(InvalidArgumentError, match="count: got 0, expected 1 to 256"):
        feature_maps(probe, picture, "relu", count=0)
    with pytest.raises(InvalidArgumentError, match="channels: got '300 channels', expected at most 256"):
        feature_maps(probe, picture, "relu", [0] * 300)
