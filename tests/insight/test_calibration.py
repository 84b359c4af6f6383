"""Calibration against sums written out by hand, and a temperature against a search over all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.insight.calibration import (
    BINNINGS,
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    at_temperature,
    calibrate,
    fit_temperature,
    reliability,
)
from pyserve.insight.predictions import Evaluation


def two_classes(confidences: list[float]) -> np.ndarray:
    """Rows whose likelier class is 0."""
    first = np.array(confidences, np.float32)
    return np.stack([first, 1 - first], axis=1)


def drawn(count: int, temperature: float, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and targets drawn from those that the same logits give at another temperature."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(count, classes)) * 3
    true = np.exp(logits / temperature)
    true /= true.sum(axis=1, keepdims=True)
    targets = (true.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    told = np.exp(logits)
    return (told / told.sum(axis=1, keepdims=True)).astype(np.float32), targets


def test_bins_of_equal_width_by_hand() -> None:
    probabilities = two_classes([0.55, 0.59, 0.62, 0.95, 1.0, 1.0])
    targets = np.array([0, 1, 0, 0, 0, 1])
    found = reliability(np.log(np.maximum(probabilities, 1e-30)), targets, bins=5)
    assert [b.count for b in found.bins] == [0, 0, 2, 1, 3]
    assert [(b.low, b.high) for b in found.bins] == [pytest.approx((i / 5, (i + 1) / 5)) for i in range(5)]
    assert found.bins[2].confidence == pytest.approx(0.57)
    assert found.bins[2].accuracy == 0.5
    assert found.bins[3].confidence == pytest.approx(0.62)
    assert found.bins[4].accuracy == pytest.approx(2 / 3)
    assert math.isnan(found.bins[0].accuracy)
    gaps = [abs(0.5 - 0.57), abs(1 - 0.62), abs(2 / 3 - 2.95 / 3)]
    assert found.ece == pytest.approx((2 * gaps[0] + gaps[1] + 3 * gaps[2]) / 6, rel=1e-5)
    assert found.largest_error == pytest.approx(gaps[1], rel=1e-5)


def test_an_edge_belongs_to_the_lower_bin() -> None:
    found = reliability(np.log(two_classes([0.75, 0.8])), np.zeros(2, np.int64), bins=4)
    assert [b.count for b in found.bins] == [0, 0, 1, 1]


def test_bins_of_equal_mass_by_hand() -> None:
    probabilities = two_classes([0.99, 0.55, 0.6, 0.9, 0.8, 0.7])
    targets = np.array([0, 0, 1, 0, 1, 0])
    found = reliability(np.log(probabilities), targets, bins=3, binning="equal_mass")
    assert [b.count for b in found.bins] == [2, 2, 2]
    assert [b.confidence for b in found.bins] == [pytest.approx(v) for v in (0.575, 0.75, 0.945)]
    assert [b.accuracy for b in found.bins] == [0.5, 0.5, 1.0]
    assert found.ece == pytest.approx((0.075 + 0.25 + 0.055) / 3, rel=1e-4)
    assert [b.high for b in found.bins] == [pytest.approx(v) for v in (0.6, 0.8, 0.99)]


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_every_picture_is_in_one_bin(binning: str, count: int) -> None:
    probabilities, targets = drawn(count, 1.0)
    found = reliability(np.log(probabilities), targets, 15, binning)
    assert sum(b.count for b in found.bins) == count
    assert sum(b.accuracy * b.count for b in found.bins if b.count) == pytest.approx(
        (probabilities.argmax(axis=1) == targets).sum()
    )
    assert all(b.low <= b.confidence + 1e-6 and b.confidence <= b.high + 1e-6 for b in found.bins if b.count)
    expected = -np.log(probabilities[np.arange(count), targets]).mean()
    assert found.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_is_the_one_that_the_targets_were_drawn_at(true: float) -> None:
    probabilities, targets = drawn(40_000, true)
    assert fit_temperature(np.log(probabilities), targets) == pytest.approx(true, rel=0.03)


def test_the_temperature_has_the_least_loss() -> None:
    probabilities, targets = drawn(300, 1.7)
    found = fit_temperature(np.log(probabilities), targets)

    def loss(temperature: float) -> float:
        powers = probabilities.astype(np.float64) ** (1 / temperature)
        return float(-np.log((powers / powers.sum(axis=1, keepdims=True))[np.arange(300), targets]).mean())

    searched = min(np.geomspace(0.1, 10, 20_001), key=loss)
    assert found == pytest.approx(searched, rel=1e-3)


def test_calibration_of_a_model_that_is_too_sure() -> None:
    probabilities, targets = drawn(6_000, 2.0)
    paths = tuple(map(str, range(6_000)))
    found = calibrate(Evaluation(probabilities, targets, paths, ("a", "b", "c", "d")))
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert not found.at_limit
    assert found.before.ece > 0.1
    assert found.after.ece < 0.03
    assert found.after.loss < found.before.loss


def test_after_is_measured_on_pictures_that_were_not_fitted() -> None:
    """Two halves that want opposite things: what each fits spoils the other."""
    probabilities = two_classes([0.9, 0.6] * 50)
    targets = np.array([0, 1] * 50)  # even pictures: always right; odd ones: always wrong
    found = calibrate(Evaluation(probabilities, targets, tuple(map(str, range(100))), ("a", "b")))
    of_even = at_temperature(np.log(two_classes([0.9])), HIGHEST_TEMPERATURE)[0, 0]  # what the odd ones ask for
    of_odd = at_temperature(np.log(two_classes([0.6])), LOWEST_TEMPERATURE)[0, 1]
    assert found.after.loss == pytest.approx(-(of_even + of_odd) / 2, rel=1e-2)
    assert found.after.loss > found.before.loss


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_is_always_right_or_always_wrong_is_at_a_limit(right: bool) -> None:
    probabilities = two_classes([0.7, 0.8, 0.9])
    targets = np.full(3, 0 if right else 1)
    found = calibrate(Evaluation(probabilities, targets, ("x", "y", "z"), ("a", "b")))
    assert found.at_limit
    assert found.temperature == pytest.approx(LOWEST_TEMPERATURE if right else HIGHEST_TEMPERATURE, rel=1e-3)


def test_a_probability_of_zero_does_no_harm() -> None:
    probabilities = np.array([[0, 1], [1, 0], [1, 0]], np.float32)
    found = calibrate(Evaluation(probabilities, np.array([0, 0, 0]), ("x", "y", "z"), ("a", "b")))
    assert math.isfinite(found.before.loss)
    assert math.isfinite(found.after.loss)


def test_errors_say_what_was_expected() -> None:
    probabilities, targets = drawn(10, 1.0)
    with pytest.raises(InvalidArgumentError, match=r"binning: got 'odd', expected one of equal_width, equal_mass"):
        reliability(np.log(probabilities), targets, binning="odd")
    with pytest.raises(InvalidArgumentError, match="bins: got 0, expected 1 to 100"):
        reliability(np.log(probabilities), targets, bins=0)
    with pytest.raises(FailedPreconditionError, match="has 1 class"):
        calibrate(Evaluation(np.ones((3, 1), np.float32), np.zeros(3, np.int64), ("x", "y", "z"), ("a",)))
    with pytest.raises(FailedPreconditionError, match="got 1 picture"):
        calibrate(Evaluation(probabilities[:1], targets[:1], ("x",), ("a", "b", "c", "d")))
    with pytest.raises(FailedPreconditionError, match="got no pictures"):
        reliability(np.log(probabilities[:0]), targets[:0])


def test_logarithms_that_are_known_exactly_count() -> None:
    """Two wrong answers that float32 cannot tell apart: −100 and −900; at temperature 10 they differ."""
    logs = np.array([[0, -100.0], [0, -900.0], [0, -5.0], [0, -5.0]])
    targets = np.array([1, 1, 0, 0])
    rounded = Evaluation(np.exp(logs).astype(np.float32), targets, tuple("wxyz"), ("a", "b"))
    exact = Evaluation(np.exp(logs).astype(np.float32), targets, tuple("wxyz"), ("a", "b"), exact_logs=logs)
    assert calibrate(exact).before.loss == pytest.approx(250)
    assert calibrate(rounded).before.loss < 50
