"""The shape of a range test's curve: how far the loss falls, over what noise, and whether that is of any use."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyserve.training.range_test import Curve

_WINDOW = 7  # points of the moving mean that says how deep the fall is and where it ends
_LEAST_FALL = 0.02  # of the first loss
# A fall of the moving mean by so many standard deviations of single losses may be chance: on noise alone one in
# fifty is larger.
_NOISES = 1.5
_MEDIAN_OF_DIFFERENCES = 0.954  # of the absolute ones of two normal values: √2 · 0.6745, standard deviations


@dataclass(frozen=True)
class Fall:
    """The part of a curve in which the loss falls, without its noise.

    `levels` never rise: the least-squares fit under that condition (isotonic regression), of the losses from the
    first to where their moving mean is lowest.
    """

    begin: float  # level before anything was learnt, nats
    lowest: float  # of the moving mean, nats
    levels: tuple[float, ...]
    noise: float  # standard deviation of single losses about their level

    @property
    def depth(self) -> float:
        """How far it falls, nats."""
        return self.begin - self.lowest

    @property
    def is_real(self) -> bool:
        """Whether it falls by more than chance would have it."""
        return self.depth > max(_LEAST_FALL * abs(self.begin), _NOISES * self.noise)

    def reaches(self, fraction: float) -> int:
        """Index of the first point at which so much of the fall is done."""
        wanted = self.begin - fraction * self.depth
        return next(i for i, level in enumerate(self.levels) if level <= wanted)


def fall_of(losses: Sequence[float], settled: int) -> Fall:
    """The fall of a curve.

    Args:
        losses: of the mini-batches, not smoothed; at least one.
        settled: so many of the first ones were seen at rates too low to learn anything: where the loss begins.
    """
    width = min(_WINDOW, len(losses))
    means = [statistics.fmean(losses[i : i + width]) for i in range(len(losses) - width + 1)]
    end = min(range(len(means)), key=means.__getitem__) + width
    steps = [abs(b - a) for a, b in itertools.pairwise(losses[:end])]
    return Fall(
        begin=statistics.fmean(losses[: max(settled, 1)]),
        lowest=min(means),
        levels=tuple(falling_fit(losses[:end])),
        noise=statistics.median(steps) / _MEDIAN_OF_DIFFERENCES if steps else 0.0,
    )


def falling_fit(values: Sequence[float]) -> list[float]:
    """The values that never rise and are nearest in least squares: neighbours that rise are pooled into their
    mean.

    Pool adjacent violators (Ayer et al. 1955), in linear time.
    """
    pools: list[tuple[float, int]] = []  # mean, number of values
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] < mean:
            before, more = pools.pop()
            mean, count = (mean * count + before * more) / (count + more), count + more
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def problem_of(curve: Curve) -> str | None:
    """Why a range test's curve is of no use, in a sentence; None where it is of use.

    Too few points are each rule's own question.
    """
    losses, settled = curve.losses, max(curve.planned // 10, 1)
    if not losses:
        return "the loss is not finite at the very first step: look at the data and the weights to begin with"
    fall = fall_of(losses, settled)
    first, last = curve.lrs[0], curve.lrs[-1]
    if curve.diverged and (len(losses) <= settled or not fall.is_real):
        return (
            f"the loss diverges at once: it never falls between lr {first:.1e} and {last:.1e}, where the test "
            f"ended after {len(losses)} of {curve.planned} steps; begin at a lower start_lr, or look at the data"
        )
    if not fall.is_real and len(losses) > 2 * settled:
        share = max(fall.depth, 0.0) / abs(fall.begin) if fall.begin else 0.0
        return (
            f"the loss is flat: from {fall.begin:.3g} it falls by {share:.1%} between lr {first:.1e} and "
            f"{last:.1e}, which its scatter of {fall.noise:.2g} explains; raise end_lr, take larger batches, or "
            "see whether anything can be learnt here"
        )
    return None
