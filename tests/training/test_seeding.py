from __future__ import annotations

import contextlib
import random

import numpy as np
import torch

from pyserve.training.seeding import derive_seed, deterministic, kept_random_state, seed_step


def test_derived_seeds_are_distinct_and_within_63_bits() -> None:
    seeds = {derive_seed(seed, step, part) for seed in range(10) for step in range(100) for part in range(3)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(1) != derive_seed(1, 0)


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    with kept_random_state():
        seed_step(3, 7)
        first = torch.rand(4)
        torch.rand(100)
        seed_step(3, 7)
        assert torch.equal(first, torch.rand(4))
        seed_step(3, 8)
        assert not torch.equal(first, torch.rand(4))


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_every_generator_ends_as_it_began_also_after_an_exception() -> None:
    random.seed(1)
    np.random.seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = draw()
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        with contextlib.suppress(ZeroDivisionError), kept_random_state():
            draw()
            random.seed(1 // 0)
        assert draw() == expected


def test_torchs_switches_are_put_back() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with deterministic(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled() == before[0]  # a CPU needs no switch
    with contextlib.suppress(ZeroDivisionError), deterministic(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        torch.zeros(1 // 0)
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before
