"""The order of an epoch: every picture once, or every class alike."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pyserve.data.order import alternating_flips, epoch_order

LABELS = torch.tensor([0] * 12 + [1] * 5 + [3])  # nobody of class 2


def test_every_picture_comes_once() -> None:
    orders = [epoch_order(LABELS, seed=1, epoch=epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(18)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(LABELS, seed=1, epoch=2).tolist() == orders[2]
    assert epoch_order(LABELS, seed=2, epoch=2).tolist() != orders[2]


@pytest.mark.parametrize("count", [18, 17, 16])
def test_balanced_epochs_have_every_class_alike(count: int) -> None:
    labels = LABELS[18 - count :]
    left_over = set()
    for epoch in range(30):
        order = epoch_order(labels, seed=1, epoch=epoch, balanced=True)
        assert len(order) == count
        classes = Counter(labels[order].tolist())
        assert set(classes) == {0, 1, 3}
        assert max(classes.values()) - min(classes.values()) <= 1
        left_over.add(tuple(sorted(classes.items())))
        pictures = Counter(order.tolist())
        for label in classes:  # within a class no picture comes twice before every other has come
            members = (labels == label).nonzero().flatten().tolist()
            times = [pictures[member] for member in members]
            assert max(times) - min(times) <= 1
    assert len(left_over) == (1 if count % 3 == 0 else 3)  # who has one more is drawn


def test_balanced_epochs_are_shuffled_and_a_function_of_seed_and_epoch() -> None:
    orders = [epoch_order(LABELS, seed=1, epoch=epoch, balanced=True).tolist() for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(LABELS, seed=1, epoch=1, balanced=True).tolist() == orders[1]
    assert LABELS[orders[0]].tolist() != sorted(LABELS[orders[0]].tolist())


def test_no_pictures_have_no_order() -> None:
    assert epoch_order(LABELS[:0], seed=0, epoch=0, balanced=True).tolist() == []


def test_what_one_epoch_mirrors_the_next_one_does_not() -> None:
    epochs = [alternating_flips(2000, seed=3, epoch=epoch) for epoch in range(4)]
    assert torch.equal(epochs[1], ~epochs[0])
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])
    assert 880 <= epochs[0].sum() <= 1120  # 1000 expected, 22 the standard deviation
    other = alternating_flips(2000, seed=4, epoch=0)
    assert 880 <= (other ^ epochs[0]).sum() <= 1120
