from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pyserve.errors import InvalidArgumentError
from pyserve.training.callbacks import Stopped, raise_if_stopped
from pyserve.training.evaluation import evaluate
from tests.training.support import RandomBatches, Recorder, same, tiny_network


def single(data: RandomBatches):  # type: ignore[no-untyped-def]
    return (((x,), y) for x, y in data.epoch(0))


def test_every_picture_weighs_alike_and_the_modes_stay() -> None:
    network, data = tiny_network(), RandomBatches(21, batch_size=8)
    network.train_mode(freeze_batch_norm=True)
    modes = [m.training for m in network.model.modules()]
    before = network.weights()
    metrics = evaluate(network.model, single(data), lambda: None)
    assert [m.training for m in network.model.modules()] == modes
    assert same(before, network.weights())
    network.model.eval()
    logits = network.model(data.images)
    assert metrics["loss"] == pytest.approx(functional.cross_entropy(logits, data.labels).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == data.labels).float().mean()))


def test_of_several_views_the_mean_probability_counts() -> None:
    network, data = tiny_network(), RandomBatches(21, batch_size=8)
    network.model.eval()
    views = [data.images, data.images.flip(3), data.images * 2]
    with torch.no_grad():
        mean = torch.stack([network.model(view).softmax(1) for view in views]).mean(0)
    batches = [([view[rows] for view in views], data.labels[rows]) for rows in torch.arange(21).split(8)]
    metrics = evaluate(network.model, batches, lambda: None)
    assert metrics["loss"] == pytest.approx(float(-mean[torch.arange(21), data.labels].log().mean()), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((mean.argmax(1) == data.labels).float().mean()))


def test_it_can_be_stopped_and_needs_pictures() -> None:
    network, data = tiny_network(), RandomBatches(24)
    listener = Recorder(stop_at=2, kind="cancel")
    with pytest.raises(Stopped):
        evaluate(network.model, single(data), lambda: raise_if_stopped(listener))
    assert listener.asked == 3
    assert network.model.training
    with pytest.raises(InvalidArgumentError, match="no pictures"):
        evaluate(network.model, [], lambda: None)
