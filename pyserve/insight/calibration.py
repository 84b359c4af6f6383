"""Whether a model that says 90 % is right nine times in ten, and the temperature that makes it so. Pure numpy.

Reliability diagram and expected calibration error (ECE) of the likeliest class, and temperature scaling: Guo et
al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599. Bins of equal mass instead of equal width
("adaptive"): Nixon et al. 2019, arXiv 1904.01685.

To add a way of binning: a function decorated with `@binning(name)`; calls, command line and tests enumerate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.insight.predictions import Evaluation, Floats, Indices

DEFAULT_BINS = 15
MAX_BINS = 100
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
_FOLDS = 2
# (confidences [N], number of bins) → which bin each belongs to [N], and the edges [bins + 1]
Binning = Callable[[Floats, int], tuple[Indices, Floats]]
BINNINGS: dict[str, Binning] = {}


@dataclass(frozen=True)
class Bin:
    """Pictures about which the model is about as sure."""

    low: float
    high: float  # confidences within low…high
    count: int
    confidence: float  # mean probability of the predicted class; NaN where the bin is empty
    accuracy: float  # share that is right; NaN where the bin is empty


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy."""

    bins: tuple[Bin, ...]
    loss: float  # mean cross-entropy, nats

    @property
    def ece(self) -> float:
        """Expected calibration error, 0…1: |accuracy − confidence|, weighted by the pictures of each bin."""
        total = sum(b.count for b in self.bins)
        return math.fsum(b.count * abs(b.accuracy - b.confidence) for b in self.bins if b.count) / total

    @property
    def largest_error(self) -> float:
        """The largest |accuracy − confidence| of a bin (maximum calibration error), 0…1."""
        return max(abs(b.accuracy - b.confidence) for b in self.bins if b.count)


@dataclass(frozen=True)
class Calibration:
    """A model as it is, and as its temperature would make it."""

    before: Reliability
    after: Reliability  # each half of the pictures at the temperature that the other half asks for
    temperature: float  # fitted on all pictures; 1 changes nothing, more makes the model less sure
    at_limit: bool  # the best one lies beyond what is sought: the model is always right, or no better than chance


def binning(name: str) -> Callable[[Binning], Binning]:
    """Enter a function into `BINNINGS`."""

    def enter(function: Binning) -> Binning:
        BINNINGS[name] = function
        return function

    return enter


@binning("equal_width")
def equal_width(confidences: Floats, bins: int) -> tuple[Indices, Floats]:
    """Bins of the same width on 0…1; a confidence at an edge belongs to the lower bin."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1), edges


@binning("equal_mass")
def equal_mass(confidences: Floats, bins: int) -> tuple[Indices, Floats]:
    """Bins with the same number of pictures, within one, so that none is judged on a handful."""
    ranks = np.empty(len(confidences), np.int64)
    ranks[np.argsort(confidences, kind="stable")] = np.arange(len(confidences))
    index = ranks * bins // len(confidences)
    inner = [confidences[index == b].max(initial=0.0) for b in range(bins - 1)]
    return index, np.array([confidences.min(), *np.maximum.accumulate(inner), confidences.max()])


def reliability(
    logs: Floats, targets: Indices, bins: int = DEFAULT_BINS, binning: str = "equal_width"
) -> Reliability:
    """Confidence of the likeliest class against accuracy, bin by bin.

    Args:
        logs: log-probabilities, finite, [N, C].
        targets: [N].

    Raises:
        InvalidArgumentError: an unknown binning, or a number of bins out of range.
        FailedPreconditionError: no pictures, or a single class.
    """
    if binning not in BINNINGS:
        raise InvalidArgumentError.field("binning", binning, f"one of {', '.join(BINNINGS)}")
    if not 1 <= bins <= MAX_BINS:
        raise InvalidArgumentError.field("bins", bins, f"1 to {MAX_BINS}")
    _require_two_classes(logs)
    confidences = np.exp(logs.max(axis=1).astype(np.float64))
    right = logs.argmax(axis=1) == targets
    index, edges = BINNINGS[binning](confidences, bins)
    made = tuple(
        Bin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            count=int((index == b).sum()),
            confidence=_mean(confidences[index == b]),
            accuracy=_mean(right[index == b]),
        )
        for b in range(bins)
    )
    return Reliability(made, -float(logs[np.arange(len(targets)), targets].mean()))


def fit_temperature(logs: Floats, targets: Indices) -> float:
    """The temperature at which the probabilities have the least cross-entropy.

    Cross-entropy is convex in 1 / temperature, and its slope there is mean(E[logit] − logit of the target), which
    grows with it: bisection finds the zero, to 1e-6, or ends at a limit (0.01, 100).

    Args:
        logs: log-probabilities at temperature 1, which are logits up to a constant of each row, [N, C].
        targets: [N].

    Raises:
        FailedPreconditionError: no pictures, or a single class.
    """
    _require_two_classes(logs)
    of_target = logs[np.arange(len(targets)), targets]
    low, high = math.log(1 / HIGHEST_TEMPERATURE), math.log(1 / LOWEST_TEMPERATURE)
    while high - low > 1e-6:
        middle = (low + high) / 2
        expected = (np.exp(at_temperature(logs, math.exp(-middle))) * logs).sum(axis=1)
        if (expected - of_target).mean() <= 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def at_temperature(logs: Floats, temperature: float | Floats) -> Floats:
    """The log-probabilities [N, C] that the same logits give at another temperature (one, or [N])."""
    scaled = logs.astype(np.float64) / np.reshape(temperature, (-1, 1))
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def calibrate(evaluation: Evaluation, bins: int = DEFAULT_BINS, binning: str = "equal_width") -> Calibration:
    """Measure a model's calibration, fit its temperature, and say honestly what that brings.

    "After" is measured on pictures that had no part in their temperature: every second picture takes that of the
    others.

    Raises:
        InvalidArgumentError: see `reliability`.
        FailedPreconditionError: fewer than two pictures, or a single class.
    """
    logs, targets = evaluation.log_probabilities, evaluation.targets
    before = reliability(logs, targets, bins, binning)
    if len(targets) < _FOLDS:
        raise FailedPreconditionError("calibration: got 1 picture, expected 2: one to fit, one to measure")
    fold = np.arange(len(targets)) % _FOLDS  # pictures of a class stand together, so both halves have every class
    temperatures = np.empty(len(targets))
    for i in range(_FOLDS):
        temperatures[fold == i] = fit_temperature(logs[fold != i], targets[fold != i])
    temperature = fit_temperature(logs, targets)
    at_limit = not 1.001 * LOWEST_TEMPERATURE < temperature < 0.999 * HIGHEST_TEMPERATURE
    after = reliability(at_temperature(logs, temperatures), targets, bins, binning)
    return Calibration(before, after, temperature, at_limit)


def _require_two_classes(logs: Floats) -> None:
    pictures, classes = logs.shape
    if not pictures:
        raise FailedPreconditionError("calibration: got no pictures, expected some")
    if classes < 2:
        raise FailedPreconditionError("calibration: the model has 1 class and is always sure; expected 2 or more")


def _mean(values: npt.NDArray[np.generic]) -> float:
    return float(values.mean()) if len(values) else math.nan
