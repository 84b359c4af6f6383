from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from pyserve.training.mixing import Mixing, cut_box
from pyserve.training.optim import set_rates
from pyserve.training.step import TrainStep
from tests.training.support import RandomBatches, tiny_config, tiny_network

N, SIZE = 12, 10


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Picture i has the value i everywhere, and the label i."""
    x = torch.arange(N, dtype=torch.float32)[:, None, None, None].expand(N, 3, SIZE, SIZE)
    return x.contiguous(memory_format=torch.channels_last), torch.arange(N)


def test_mixup_is_the_share_of_both_pictures() -> None:
    x, y = batch()
    shares = []
    for seed in range(200):
        mixed, targets = Mixing(mixup=0.4).apply(x, y, seed)
        share = float(targets.share)
        assert sorted(targets.partners.tolist()) == list(range(N))
        expected = share * x + (1 - share) * targets.partners.float()[:, None, None, None]
        torch.testing.assert_close(mixed, expected)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        shares.append(share)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); of 200 draws the mean lies within 4 standard errors
    variance = 1 / (4 * (2 * 0.4 + 1))
    assert abs(np.mean(shares) - 0.5) < 4 * (variance / 200) ** 0.5
    assert np.var(shares) == pytest.approx(variance, rel=0.25)


def test_cutmix_replaces_a_box_and_its_share_is_what_is_left() -> None:
    x, y = batch()
    for seed in range(100):
        mixed, targets = Mixing(cutmix=1.0).apply(x, y, seed)
        for i, partner in enumerate(targets.partners.tolist()):
            own = (mixed[i] == i).all(0) if partner != i else torch.ones(SIZE, SIZE, dtype=torch.bool)
            theirs = (mixed[i] == partner).all(0)
            assert (own | theirs).all()
            if partner != i:
                assert float(targets.share) == pytest.approx(own.float().mean().item())
                rows, columns = theirs.any(1).sum(), theirs.any(0).sum()
                assert rows * columns == theirs.sum()  # a rectangle


def test_the_box_has_the_area_that_is_not_kept() -> None:
    assert cut_box(10, 20, 0.75, (0.5, 0.5)) == (2, 8, 5, 15)
    assert cut_box(8, 8, 0.75, (0.5, 0.5)) == (2, 6, 2, 6)
    assert cut_box(8, 8, 0.75, (0.0, 1.0)) == (0, 2, 6, 8)  # what sticks out is cut off
    assert cut_box(8, 8, 1.0, (0.5, 0.5)) == (4, 4, 4, 4)
    assert cut_box(8, 8, 0.0, (0.5, 0.5)) == (0, 8, 0, 8)


def test_with_both_each_batch_has_one_of_them() -> None:
    x, y = batch()
    kinds = []
    for seed in range(100):
        mixed, targets = Mixing(0.4, 1.0).apply(x, y, seed)
        kinds.append(bool((mixed == mixed.round()).all()) and float(targets.share) < 1)
    assert 30 < sum(kinds) < 70
    assert not Mixing()
    assert Mixing(mixup=0.1)
    assert Mixing(cutmix=0.1)


def test_it_is_a_function_of_the_seed_and_leaves_batch_and_generators_alone() -> None:
    x, y = batch()
    before, state = x.clone(), torch.get_rng_state()
    for mixing in (Mixing(mixup=0.4), Mixing(cutmix=1.0)):
        first, second, other = (mixing.apply(x, y, seed)[0] for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixed_step_is_that_of_mixed_labels(smoothing: float) -> None:
    """Cross-entropy is linear in the target, so the same loss comes from one-hot labels mixed alike."""
    network, data = tiny_network(), RandomBatches(16)
    network.model.eval()
    step = TrainStep(mixing=Mixing(mixup=0.4), label_smoothing=smoothing, seed=5)
    x, targets = step._mixed(data.images, data.labels, 3, 0)
    share = float(targets.share)
    one_hot = functional.one_hot(data.labels, 3) * share + functional.one_hot(targets.partners, 3) * (1 - share)
    expected = functional.cross_entropy(network.model(x).detach(), one_hot, label_smoothing=smoothing)
    optimizer = tiny_config().make_optimizer(network)
    set_rates(optimizer, 0.0, None)
    result = step.run(network.model, optimizer, [(data.images, data.labels)], 3)
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-5)


def test_activations_are_not_mixed() -> None:
    values, labels = torch.randn(6, 5), torch.arange(6)
    x, targets = TrainStep(mixing=Mixing(mixup=0.4))._mixed(values, labels, 0, 0)
    assert x is values
    assert targets.partners is None
