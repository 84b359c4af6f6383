"""The shape of a range test's curve, and curves that are refused."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from pyserve.errors import FailedPreconditionError
from pyserve.training.callbacks import CurvePoint
from pyserve.training.lr_curve import fall_of, falling_fit, problem_of
from pyserve.training.lr_rules import suggest
from pyserve.training.range_test import Curve

LRS = np.geomspace(1e-7, 10, 100)


def curve(losses: list[float], *, diverged: bool = False, planned: int = 100) -> Curve:
    points = [CurvePoint(float(lr), loss, loss, 0.5, 0) for lr, loss in zip(LRS, losses, strict=False)]
    return Curve(planned, points, diverged)


def ramp(noise: float = 0.0, seed: int = 0) -> list[float]:
    """2.0 up to lr 1e-4, down to 1.0 in a straight line over two decades, the same up to 1, and away."""
    x = np.log10(LRS)
    level = np.where(x < -4, 2.0, np.where(x < -2, 2.0 - (x + 4) / 2, np.where(x < 0, 1.0, 1.0 + 10 ** (2 * x))))
    return list(level + np.random.default_rng(seed).normal(0, noise, 100))


def test_the_falling_fit_is_that_of_the_formula() -> None:
    """min over beginnings of max over ends of the means between (Robertson et al. 1988, for falling fits)."""
    source = np.random.default_rng(0)
    for _ in range(40):
        values = list(source.integers(0, 6, source.integers(1, 12)).astype(float))
        count = len(values)
        expected = [
            min(max(statistics.fmean(values[a : b + 1]) for b in range(i, count)) for a in range(i + 1))
            for i in range(count)
        ]
        assert falling_fit(values) == pytest.approx(expected), values


def test_a_fall_is_measured_without_its_noise() -> None:
    clean, noisy = fall_of(ramp(), 10), fall_of(ramp(0.05), 10)
    assert (clean.begin, clean.depth, clean.noise) == (2.0, pytest.approx(1.0), 0.0)
    assert noisy.begin == pytest.approx(2.0, abs=0.05)
    assert noisy.depth == pytest.approx(1.0, abs=0.15)
    assert noisy.noise == pytest.approx(0.05, abs=0.03)
    assert clean.is_real
    assert noisy.is_real
    assert all(a >= b for a, b in zip(noisy.levels, noisy.levels[1:], strict=False))


def test_the_middle_lies_between_a_half_and_85_percent_of_the_fall() -> None:
    rate = suggest("middle", curve(ramp()))
    there = 10 ** (-4 + 2 * (0.5 + 0.85) / 2)  # on the straight line
    assert there <= rate <= there * (LRS[1] / LRS[0])  # the next rates that were tried
    answers = [suggest("middle", curve(ramp(0.05, seed))) for seed in range(20)]
    assert all(abs(math.log10(answer / there)) < 0.25 for answer in answers)


def test_a_peak_is_three_times_the_middle() -> None:
    for seed in range(5):
        drawn = curve(ramp(0.05, seed))
        assert suggest("peak", drawn) == pytest.approx(3 * suggest("middle", drawn))


@pytest.mark.parametrize("rule", ["middle", "peak"])
def test_scatter_is_no_fall(rule: str) -> None:
    with pytest.raises(FailedPreconditionError, match=f"^{rule}: the loss falls by no more than its scatter"):
        suggest(rule, curve(list(2.3 + np.random.default_rng(0).normal(0, 0.1, 100))))


@pytest.mark.parametrize("seed", range(10))
def test_a_flat_curve_is_refused(seed: int) -> None:
    noise = list(2.3 + np.random.default_rng(seed).normal(0, 0.1, 100))
    problem = problem_of(curve(noise))
    assert problem is not None
    assert problem.startswith("the loss is flat: from 2.")
    assert "raise end_lr" in problem
    steady = problem_of(curve([0.7] * 100))
    assert steady is not None
    assert "falls by 0.0% between lr 1.0e-07 and 1.0e+01" in steady


@pytest.mark.parametrize("points", [3, 8, 30, 60])
def test_a_curve_that_diverges_at_once_is_refused(points: int) -> None:
    rising = [2.3 + 0.5 * i for i in range(points)]
    problem = problem_of(curve(rising, diverged=True))
    assert problem is not None
    assert problem.startswith("the loss diverges at once: it never falls between lr 1.0e-07 and ")
    assert f"after {points} of 100 steps" in problem


def test_a_first_loss_that_is_not_finite_is_refused() -> None:
    problem = problem_of(curve([], diverged=True))
    assert problem is not None
    assert "not finite at the very first step" in problem


def test_curves_of_use_are_not_refused() -> None:
    assert problem_of(curve(ramp(0.05))) is None
    assert problem_of(curve(ramp(0.05), diverged=True)) is None
    assert problem_of(curve(ramp()[:70])) is None
