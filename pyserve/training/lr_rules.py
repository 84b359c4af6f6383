"""Where on the curve of a range test the learning rate should lie: pure functions of (lrs, losses).

A rule takes the trimmed curve, learning rates ascending and losses, and gives one learning rate, or an error that
says why there is none. Most read the smoothed losses; one that looks through the noise itself reads those of the
mini-batches (`reads="losses"`). To add one: a function decorated with `@register(name)`; spec, command line and
tests enumerate `RULES`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pyserve.errors import FailedPreconditionError
from pyserve.training.lr_curve import fall_of

if TYPE_CHECKING:
    from pyserve.training.range_test import Curve

Rule = Callable[[Sequence[float], Sequence[float]], float]
Reads = Literal["smoothed", "losses"]
RULES: dict[str, Rule] = {}
_READS: dict[str, Reads] = {}

_TRIMMED_END = 5  # the last points, where the loss already runs away
_FEWEST = 4  # points of a trimmed curve that can have a shape
_MIDDLE = (0.5, 0.85)  # of the fall; as this and the next were found: benchmarks/lr_advice.py
_PEAK = 3.0  # times the middle
_SLIDE_WIDTH = 15
_SLIDE_THRESHOLD = 0.005


def register(name: str, *, reads: Reads = "smoothed") -> Callable[[Rule], Rule]:
    """Enter a rule into `RULES`."""

    def enter(rule: Rule) -> Rule:
        RULES[name], _READS[name] = rule, reads
        return rule

    return enter


def trim(values: Sequence[float], planned: int) -> list[float]:
    """Without the first `planned // 10` points (`planned`: those the test meant to run) and the last five."""
    return list(values[planned // 10 : max(len(values) - _TRIMMED_END, 0)])


def suggest(rule: str, curve: Curve) -> float:
    """The learning rate of one rule on a whole curve, which is trimmed first.

    Raises:
        FailedPreconditionError: too few points are left, or the rule finds no place on the curve.
    """
    values = curve.losses if _READS[rule] == "losses" else curve.smoothed
    kept_lrs, kept_losses = trim(curve.lrs, curve.planned), trim(values, curve.planned)
    if len(kept_lrs) < _FEWEST:
        raise FailedPreconditionError(
            f"{rule}: the range test gave {len(values)} points, of which {len(kept_lrs)} are left without the "
            f"first {curve.planned // 10} and the last {_TRIMMED_END}; expected at least {_FEWEST}: "
            "begin at a lower start_lr or take more steps"
        )
    return RULES[rule](kept_lrs, kept_losses)


@register("middle", reads="losses")
def middle(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """For a rate that is held: the geometric mean of those at which half and 85 % of the loss's fall are done.

    The fall is the isotonic fit of the mini-batches' losses (`lr_curve.Fall`), so the answer does not lag behind
    as one read off a moving average does; two places on it scatter less than one. Our own.
    """
    return _middle_of_fall("middle", lrs, losses)


@register("peak", reads="losses")
def peak(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """For a rate that a schedule touches only, as one-cycle does: three times `middle`."""
    return _PEAK * _middle_of_fall("peak", lrs, losses)


def _middle_of_fall(rule: str, lrs: Sequence[float], losses: Sequence[float]) -> float:
    fall = fall_of(losses, max(len(losses) // 10, 3))
    if not fall.is_real:
        raise FailedPreconditionError(f"{rule}: the loss falls by no more than its scatter")
    return math.sqrt(math.prod(lrs[fall.reaches(part)] for part in _MIDDLE))


@register("valley")
def valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Two thirds along the longest decreasing run of the losses.

    The run is the longest decreasing subsequence (Schensted 1961, in n log n): noise that lifts a point or two
    does not break it, and places where the loss truly falls hold most of its points.
    """
    run = longest_decrease(losses)
    if len(run) < _FEWEST:
        raise FailedPreconditionError(f"valley: the loss falls over {len(run)} points, expected {_FEWEST} or more")
    return lrs[run[round((len(run) - 1) * 2 / 3)]]


def longest_decrease(values: Sequence[float]) -> list[int]:
    """Indices of the longest strictly decreasing subsequence; of equally long ones, the one that ends lowest."""
    ends: list[float] = []  # ends[k]: negated last value of the best run of length k + 1
    end_index: list[int] = []
    before: list[int] = []
    for index, value in enumerate(values):
        length = bisect.bisect_left(ends, -value)
        before.append(end_index[length - 1] if length else -1)
        ends[length : length + 1] = [-value]
        end_index[length : length + 1] = [index]
    run = []
    index = end_index[-1] if end_index else -1
    while index >= 0:
        run.append(index)
        index = before[index]
    return run[::-1]


@register("steep")
def steep(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Where the loss falls most steeply against the logarithm of the learning rate."""
    slopes = [
        (losses[i + 1] - losses[i]) / (math.log(lrs[i + 1]) - math.log(lrs[i])) for i in range(len(losses) - 1)
    ]
    lowest = min(slopes)
    if lowest >= 0:
        raise FailedPreconditionError("steep: the loss falls nowhere; begin at a lower start_lr")
    return lrs[slopes.index(lowest)]


@register("slide")
def slide(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Interval slide rule: a window slides down from the highest rates.

    While the slopes of the loss at the window's two ends (15 points apart) differ by more than 0.005 the loss is
    still unstable there; the left end of the last unstable window is the answer.
    """
    if len(losses) < _SLIDE_WIDTH + 2:
        raise FailedPreconditionError(
            f"slide: needs {_SLIDE_WIDTH + 2} points after trimming, got {len(losses)}; take more steps"
        )
    slopes = _slopes(losses)
    found = None
    for right in range(len(losses) - 1, _SLIDE_WIDTH - 1, -1):
        left = right - _SLIDE_WIDTH
        if abs(slopes[right] - slopes[left]) <= _SLIDE_THRESHOLD:
            break
        found = lrs[left]
    if found is None:
        raise FailedPreconditionError("slide: the loss is still stable at the highest rates; raise end_lr")
    return found


def _slopes(values: Sequence[float]) -> list[float]:
    """Central differences per point, one-sided at the ends."""
    inner = [(values[i + 1] - values[i - 1]) / 2 for i in range(1, len(values) - 1)]
    return [values[1] - values[0], *inner, values[-1] - values[-2]]


@register("minimum")
def minimum(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the learning rate at the lowest loss."""
    return lrs[min(range(len(losses)), key=losses.__getitem__)] / 10
