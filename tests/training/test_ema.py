from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pyserve.training.checkpoint import NEWEST, load
from pyserve.training.ema import WeightAverage
from pyserve.training.phases import Phase
from tests.training.support import Recorder, same, tiny_config, tiny_network
from tests.training.test_learner import last_weights, make


def test_the_average_is_that_of_the_formula() -> None:
    network = tiny_network()
    model, decay = network.model, 0.9
    average = WeightAverage(model, decay)
    expected = {k: v.double() if v.is_floating_point() else v for k, v in network.weights().items()}
    for t in range(1, 121):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            model.norm.running_mean.add_(0.01)
            model.norm.num_batches_tracked.add_(1)
        average.update()
        used = min(decay, (1 + t) / (10 + t))
        for name, value in network.weights().items():
            if value.is_floating_point():
                expected[name] = used * expected[name] + (1 - used) * value.double()
            else:
                expected[name] = value
    state = average.state()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == network.weights()[name].dtype
        torch.testing.assert_close(state[name].to(value.dtype), value, rtol=1e-4, atol=1e-5)


def test_the_model_has_the_average_within_the_block_only() -> None:
    network = tiny_network()
    average = WeightAverage(network.model, 0.5)
    before = network.weights()
    with torch.no_grad():
        network.model.fc.weight.add_(1.0)
    own = network.weights()
    kept = {k: v.clone() for k, v in average.state().items()}
    with average.in_place():
        inside = network.weights()
    assert same(inside, before)
    assert same(network.weights(), own)
    assert same(average.state(), kept)


@pytest.mark.parametrize("stop_at", [2, 7, 13, 20])
def test_a_training_with_an_average_resumes_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    config = dataclasses.replace(tiny_config(), ema_decay=0.8)
    whole = make(tmp_path / "whole", config=config)
    whole.fit()
    make(tmp_path / "parts", Recorder(stop_at=stop_at), config=config).fit()
    second = make(tmp_path / "parts", config=config)
    assert second.restore()
    second.fit()
    assert same(last_weights(tmp_path / "whole"), last_weights(tmp_path / "parts"))
    assert same(whole.network.weights(), second.network.weights())


def test_what_is_measured_and_kept_is_the_average(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(), ema_decay=0.9)
    learner = make(tmp_path, config=config, phases=(Phase(1, 0.1, "constant"),))
    learner.fit()
    tensors = load(tmp_path / NEWEST).tensors
    best, average, live = (
        {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{part}.")}
        for part in ("best", "average", "model")
    )
    assert same(best, average)
    assert not same(best, live)
    assert same(learner.network.weights(), best)
