from __future__ import annotations

import dataclasses

import pytest
import torch

from pyserve.training.callbacks import Stopped, raise_if_stopped
from pyserve.training.features import FeatureBatches, Features, body_features
from pyserve.training.learner import Learner, Stage
from pyserve.training.network import Network
from pyserve.training.phases import Phase
from tests.training.support import RandomBatches, Recorder, same, tiny_config, tiny_network


def features_of(network: Network, data: RandomBatches) -> Features:
    in_order = ((data.images[rows], data.labels[rows]) for rows in torch.arange(len(data.labels)).split(8))
    return body_features(network, in_order, "float32", lambda: None)


def test_the_head_makes_of_them_what_the_network_makes_of_the_pictures() -> None:
    network, data = tiny_network(), RandomBatches(21)
    before = network.weights()
    network.train_mode(freeze_batch_norm=False)
    found = features_of(network, data)
    assert network.model.training
    assert same(before, network.weights())  # not even BatchNorm's statistics moved
    network.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(network.head_module(found.values), network.model(data.images))
    assert torch.equal(found.labels, data.labels)
    assert not network.model.fc._forward_pre_hooks


def test_a_head_trained_on_them_is_the_head_trained_on_pictures() -> None:
    """The body in evaluation mode, the same batches in the same order: the same head up to rounding."""
    heads = []
    for on_features in (True, False):
        network = tiny_network()
        network.model.drop.p = 0.0
        data = RandomBatches(36)
        orders = FeatureBatches(features_of(network, data), batch_size=8, seed=4)

        class InOrder(RandomBatches):
            def epoch(self, epoch: int, start_step: int = 0):  # type: ignore[no-untyped-def]
                """The pictures whose features the other one takes."""
                from pyserve.data.order import epoch_order

                order = epoch_order(self.labels, seed=4, epoch=epoch)
                for rows in order.split(8)[start_step:]:
                    yield self.images[rows], self.labels[rows]

        pictures = InOrder(36)
        stage = Stage(network.head_alone(), orders, orders) if on_features else Stage(network, pictures, pictures)
        config = dataclasses.replace(tiny_config(), freeze_batch_norm=True)
        phase = Phase(4, 0.05, frozen=True, precomputed=on_features)
        learner = Learner(network, config, (phase,), lambda index, stage=stage: stage, callbacks=Recorder())
        learner.fit()
        heads.append(network.weights())
    torch.testing.assert_close(heads[0]["fc.weight"], heads[1]["fc.weight"], rtol=1e-3, atol=1e-4)
    del heads[0]["fc.weight"], heads[1]["fc.weight"], heads[0]["fc.bias"], heads[1]["fc.bias"]
    assert same(*heads)


@pytest.mark.parametrize(("count", "sizes"), [(17, [8, 8]), (18, [8, 8, 2]), (1, []), (2, [2])])
def test_batches_of_features_leave_out_what_batches_of_pictures_do(count: int, sizes: list[int]) -> None:
    found = Features(torch.arange(count * 4.0).reshape(count, 4), torch.arange(count))
    shuffled = FeatureBatches(found, batch_size=8, seed=1)
    assert [len(y) for _, y in shuffled.epoch(0)] == sizes
    assert len(shuffled) == len(sizes)
    whole = FeatureBatches(found, batch_size=8, shuffled=False)
    assert torch.cat([y for _, y in whole.epoch(0)]).tolist() == list(range(count))
    assert len(whole) == -(-count // 8)
    for x, y in shuffled.epoch(3):
        assert torch.equal(x, found.values[y])
    assert [y.tolist() for _, y in shuffled.epoch(3, 1)] == [y.tolist() for _, y in shuffled.epoch(3)][1:]


def test_it_can_be_stopped() -> None:
    network, data = tiny_network(), RandomBatches(24)
    listener = Recorder(stop_at=1)
    with pytest.raises(Stopped):
        body_features(network, data.epoch(0), "float32", lambda: raise_if_stopped(listener))
    assert network.model.training
    assert not network.model.fc._forward_pre_hooks
