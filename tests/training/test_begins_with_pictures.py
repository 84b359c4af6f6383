from __future__ import annotations

from pathlib import Path

import torch

from pyserve.data.manifest import Manifest
from pyserve.models.whitened import WhitenedNet
from pyserve.spec import TrainSpec
from pyserve.training.prepare import TrainDirs, prepare, sample
from pyserve.training.recipe import train
from tests.training.support import Recorder


def spec(**fields: object) -> TrainSpec:
    values = {"architecture": "whitenednet", "image_size": 16, "batch_size": 8, "optimizer": "sgd"}
    return TrainSpec(dataset="datasets/tints", device="cpu", **{**values, **fields})


def test_the_first_layer_is_that_of_the_training_pictures(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    dirs = TrainDirs(tmp_path, cache)
    shown = sample(prepare(spec(), manifest, dirs, Recorder()).pictures)
    assert shown.shape == (len(manifest.part_items("train")), 3, 16, 16)
    expected = WhitenedNet(len(manifest.classes))
    expected.begin_with(shown)
    outcome = train(spec(epochs=4, learning_rate=0.3), manifest, dirs, Recorder())
    assert outcome.model is not None
    state = outcome.model.state_dict()
    assert torch.equal(state["whiten.weight"], expected.whiten.weight)
    assert (state["stages.0.2.weight"] == 1).all()
    assert outcome.metrics["accuracy"] > 0.9


def test_weights_that_were_trained_are_kept(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    model = WhitenedNet(len(manifest.classes))
    torch.save(model.state_dict(), tmp_path / "other.pth")
    dirs = TrainDirs(tmp_path, cache, weights_path=tmp_path / "other.pth")
    network = prepare(spec(weights="models/tints/versions/1"), manifest, dirs, Recorder()).network
    assert torch.equal(network.weights()["whiten.weight"], model.whiten.weight)
