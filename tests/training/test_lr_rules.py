from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest

from pyserve import spec
from pyserve.errors import FailedPreconditionError
from pyserve.training.callbacks import CurvePoint
from pyserve.training.lr_rules import RULES, longest_decrease, trim
from pyserve.training.lr_rules import suggest as suggest_on
from pyserve.training.range_test import Curve


def suggest(rule: str, lrs: Sequence[float], losses: Sequence[float], planned: int) -> float:
    """A rule on a curve without noise, whose moving averages are the losses themselves."""
    points = [CurvePoint(lr, loss, loss, 0.5, 0) for lr, loss in zip(lrs, losses, strict=True)]
    return suggest_on(rule, Curve(planned, points))


def rates(count: int = 100) -> list[float]:
    return list(np.geomspace(1e-7, 10, count))


def bowl(lrs: list[float], center: float = 1e-2) -> list[float]:
    """Flat, a smooth fall around 1e-3, the lowest at `center`, then up: the shape of a range test."""
    x = np.log10(lrs)
    fall = 2 / (1 + np.exp(4 * (x + 3)))
    rise = np.exp(3 * (x - math.log10(center) - 1))
    return list(fall + rise + 0.1)


def test_the_spec_and_the_registry_name_the_same_rules() -> None:
    assert set(RULES) == set(get_args(spec.Rule))


def test_trimming_leaves_out_a_tenth_of_the_plan_and_the_last_five() -> None:
    assert trim(list(range(100)), 100) == list(range(10, 95))
    assert trim(list(range(60)), 100) == list(range(10, 55))
    assert trim(list(range(27)), 27) == list(range(2, 22))
    assert trim(list(range(4)), 4) == []


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("points", [0, 1, 5, 15, 18])
def test_too_few_points_are_a_clear_error(rule: str, points: int) -> None:
    lrs = rates()[:points]
    with pytest.raises(
        FailedPreconditionError, match=rf"{rule}: the range test gave {points} points, of which \d are"
    ):
        suggest(rule, lrs, bowl(lrs), planned=100)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_are_pure_and_give_a_rate_on_the_curve(rule: str) -> None:
    lrs = rates()
    losses = bowl(lrs)
    kept = (list(lrs), list(losses))
    rate = suggest(rule, lrs, losses, 100)
    assert rate == suggest(rule, lrs, losses, 100)
    assert (lrs, losses) == kept
    assert 1e-6 < rate < 1


def test_steep_is_the_steepest_descent_against_log_lr() -> None:
    lrs = rates()
    losses = bowl(lrs)
    inner_lrs, inner = np.array(lrs[10:95]), np.array(losses[10:95])
    slopes = np.diff(inner) / np.diff(np.log(inner_lrs))
    assert suggest("steep", lrs, losses, 100) == inner_lrs[np.argmin(slopes)]
    assert suggest("steep", lrs, losses, 100) == pytest.approx(1e-3, rel=0.2)  # where the curve was made to fall
    # against log lr, not against lr or per point: unevenly spaced rates
    uneven = [1e-4, 2e-4, 4e-4, 4e-3, 8e-3]
    assert RULES["steep"](uneven, [3.0, 2.6, 2.1, 1.4, 1.3]) == 2e-4


def test_minimum_is_a_tenth_of_the_lowest() -> None:
    lrs = rates()
    losses = [5.0] * 100
    losses[40] = 1.0
    losses[97] = 0.0  # trimmed away
    losses[3] = 0.0
    assert suggest("minimum", lrs, losses, 100) == lrs[40] / 10


def test_valley_is_two_thirds_along_the_longest_decrease() -> None:
    lrs = rates(45)
    losses = [3.0] * 10 + [3 - i / 10 for i in range(25)] + [2.0, *[4.0] * 9]
    # trimmed by 4 and 5: the decrease runs over points 9 … 34 of the whole curve (3.0 … 0.6), 25 values
    assert suggest("valley", lrs, losses, 45) == lrs[10 + 16]


def test_valley_is_not_misled_by_single_points_of_noise() -> None:
    lrs = rates()
    clean = bowl(lrs)
    noisy = [loss + (0.05 if i % 7 == 0 else 0.0) for i, loss in enumerate(clean)]
    ours, there = suggest("valley", lrs, noisy, 100), suggest("valley", lrs, clean, 100)
    assert abs(math.log10(ours / there)) < 0.3


def brute_force(values: list[float]) -> int:
    """Length of the longest strictly decreasing subsequence, from all subsets."""
    return max(
        len(pick)
        for size in range(len(values) + 1)
        for pick in itertools.combinations(values, size)
        if all(a > b for a, b in itertools.pairwise(pick))
    )


def test_longest_decrease_agrees_with_brute_force() -> None:
    source = random.Random(0)
    for _ in range(60):
        values = [float(source.randrange(8)) for _ in range(source.randrange(10))]
        run = longest_decrease(values)
        assert all(i < j and values[i] > values[j] for i, j in itertools.pairwise(run))
        assert len(run) == brute_force(values), values


def test_slide_stops_where_the_slopes_agree() -> None:
    lrs = rates()
    losses = [2.0] * 60 + [2.0 + 0.05 * i * i for i in range(40)]
    inner = np.array(losses[10:95])
    slopes = np.gradient(inner)
    right = len(inner) - 1
    while abs(slopes[right] - slopes[right - 15]) > 0.005:
        right -= 1
    expected = lrs[10 + right - 15 + 1]
    assert suggest("slide", lrs, losses, 100) == expected
    assert lrs[40] < expected < lrs[60]


def test_each_rule_says_why_it_finds_nothing() -> None:
    lrs = rates()
    rising = [float(i) for i in range(100)]
    with pytest.raises(FailedPreconditionError, match="valley: the loss falls over 1 points"):
        suggest("valley", lrs, rising, 100)
    with pytest.raises(FailedPreconditionError, match="steep: the loss falls nowhere"):
        suggest("steep", lrs, rising, 100)
    with pytest.raises(FailedPreconditionError, match="slide: the loss is still stable"):
        suggest("slide", lrs, rising, 100)
    with pytest.raises(FailedPreconditionError, match="slide: needs 17 points after trimming, got 10"):
        suggest("slide", lrs[:25], rising[:25], 100)
