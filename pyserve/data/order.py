"""In which order an epoch takes the pictures of a part: a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import torch

_FLIPS = 1  # key of the draw that all epochs share


def generator(seed: int, epoch: int, draw: int) -> torch.Generator:
    """A generator on the CPU; draw 0 of an epoch is its order, draw i + 1 the augmentation of batch i."""
    (state,) = np.random.SeedSequence([seed, epoch, draw]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


def alternating_flips(count: int, *, seed: int, epoch: int) -> torch.Tensor:
    """Which pictures of a part are mirrored in an epoch: half of them, and in the next one the others.

    So two epochs show every picture both ways, where two draws would show half of them twice the same
    (Keller Jordan, arXiv 2404.00498).

    Args:
        count: N, pictures of the part.
        seed: of what the first epoch draws.
        epoch: from 0.

    Returns:
        bool [N].
    """
    (state,) = np.random.SeedSequence(seed, spawn_key=(_FLIPS,)).generate_state(1, np.uint64)
    first = torch.rand(count, generator=torch.Generator().manual_seed(int(state) >> 1)) < 0.5
    return first ^ (epoch % 2 == 1)


def epoch_order(labels: torch.Tensor, *, seed: int, epoch: int, balanced: bool = False) -> torch.Tensor:
    """Indices of the pictures of one epoch, as many as there are labels.

    Args:
        labels: int64 [N].
        seed: of all epochs.
        epoch: from 0.
        balanced: False takes every picture once. True takes equally many of every class (one more of some, drawn
            anew each epoch, where N is no multiple): pictures of a rare class come several times, each as often as
            any other of its class but for one, and of a frequent class not all come.

    Returns:
        int64 [N].
    """
    source = generator(seed, epoch, 0)
    if not balanced or not len(labels):
        return torch.randperm(len(labels), generator=source)
    classes = torch.bincount(labels).nonzero().flatten()
    classes = classes[torch.randperm(len(classes), generator=source)]
    each, more = divmod(len(labels), len(classes))
    taken = [
        _repeated((labels == label).nonzero().flatten(), each + (rank < more), source)
        for rank, label in enumerate(classes)
    ]
    order = torch.cat(taken)
    return order[torch.randperm(len(order), generator=source)]


def _repeated(members: torch.Tensor, count: int, source: torch.Generator) -> torch.Tensor:
    """`count` of the members: all of them in an order of their own, over and over."""
    rounds = -(-count // len(members))
    orders = [members[torch.randperm(len(members), generator=source)] for _ in range(rounds)]
    return torch.cat([members[:0], *orders])[:count]
