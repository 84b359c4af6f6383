"""Learning-rate schedules: pure functions of the step.

A schedule gives, for step 0 ≤ t < total_steps, the factor on the highest learning rate and, where it moves it,
the momentum (beta1 of AdamW). To add one: a function decorated with `@register(name)`; tests, spec and command
line enumerate `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """Factor on the highest learning rate, and the momentum where the schedule moves it."""

    lr_factor: float
    momentum: float | None = None


@dataclass(frozen=True)
class Span:
    """The steps that a schedule covers.

    `cycle_steps` is the length of the first cycle (up and down for the triangular ones); by default all steps are
    one cycle. With `cycle_mult` each SGDR cycle is that many times as long as the one before.
    """

    total_steps: int
    cycle_steps: int = 0
    cycle_mult: int = 1

    @property
    def first_cycle(self) -> int:
        """Length of the first cycle, steps."""
        return self.cycle_steps or max(self.total_steps, 1)


Schedule = Callable[..., Point]  # of (step, span), and of options that only some have
SCHEDULES: dict[str, Schedule] = {}
CYCLIC = ("sgdr", "triangular", "triangular2", "exp_range")

# Smith (arXiv 1506.01186, 3.3): base_lr a third or a fourth of max_lr.
TRIANGULAR_BASE = 0.25
# exp_range's decay over a whole run: Smith's 0.99994 per step leaves 0.08 after his 42,000 steps. Relative to the
# run, so that a short one sees it too.
EXP_RANGE_END = 0.08


def register(name: str) -> Callable[[Schedule], Schedule]:
    """Enter a schedule into `SCHEDULES`."""

    def enter(schedule: Schedule) -> Schedule:
        SCHEDULES[name] = schedule
        return schedule

    return enter


def _cosine(start: float, end: float, position: float) -> float:
    """Half a cosine from `start` (position 0) to `end` (position 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2


@register("one_cycle")
def one_cycle(
    step: int,
    span: Span,
    *,
    pct_start: float = 0.25,
    div: float = 25.0,
    final_div: float = 1e5,
    momenta: tuple[float, float] = (0.95, 0.85),
) -> Point:
    """Smith's one-cycle policy (arXiv 1803.09820) with cosine flanks.

    Args:
        step: from 0.
        span: the cycle's length; the last step has the final rate.
        pct_start: fraction of the cycle in which the rate rises.
        div: highest rate / first rate.
        final_div: highest rate / last rate.
        momenta: at the ends and at the peak; it moves against the rate.
    """
    if span.total_steps <= 1:
        return Point(1.0, momenta[1])
    position = min(step / (span.total_steps - 1), 1.0)
    if position < pct_start:
        rise = position / pct_start
        return Point(_cosine(1 / div, 1.0, rise), _cosine(momenta[0], momenta[1], rise))
    fall = (position - pct_start) / (1 - pct_start)
    return Point(_cosine(1.0, 1 / final_div, fall), _cosine(momenta[1], momenta[0], fall))


@register("slanted_triangular")
def slanted_triangular(
    step: int, span: Span, *, pct_start: float = 0.23, first: float = 0.2, last: float = 0.07
) -> Point:
    """Slanted triangular rates (Howard & Ruder, arXiv 1801.06146): straight up soon, and straight down for long.

    The three numbers are Keller Jordan's (arXiv 2404.00498), who leaves momentum alone and trains for few epochs.

    Args:
        step: from 0.
        span: the triangle's length.
        pct_start: fraction of it in which the rate rises.
        first: first rate / highest rate.
        last: last rate / highest rate.
    """
    position = step / max(span.total_steps - 1, 1)
    if position < pct_start:
        return Point(first + (1 - first) * position / pct_start)
    return Point(1 + (last - 1) * (position - pct_start) / (1 - pct_start))


def cycle_at(step: int, span: Span) -> tuple[int, int, int]:
    """Where `step` lies among cycles that grow by `cycle_mult`: (index, steps into it, its length)."""
    start, length, index = 0, span.first_cycle, 0
    while step >= start + length:
        start, length, index = start + length, length * span.cycle_mult, index + 1
    return index, step - start, length


@register("sgdr")
def sgdr(step: int, span: Span) -> Point:
    """Cosine annealing with warm restarts (Loshchilov & Hutter, arXiv 1608.03983)."""
    _, into, length = cycle_at(step, span)
    return Point(_cosine(1.0, 0.0, into / length))


def _triangle(step: int, span: Span) -> tuple[int, float]:
    """Index of the cycle and the height, 0 at its ends and 1 in its middle (cycles do not grow)."""
    cycle, into = divmod(step, span.first_cycle)
    return cycle, 1 - abs(2 * into / span.first_cycle - 1)


@register("triangular")
def triangular(step: int, span: Span) -> Point:
    """Cyclical learning rates (Smith, arXiv 1506.01186): straight up from a quarter and down again."""
    _, height = _triangle(step, span)
    return Point(TRIANGULAR_BASE + (1 - TRIANGULAR_BASE) * height)


@register("triangular2")
def triangular2(step: int, span: Span) -> Point:
    """`triangular`, its height halved with each cycle."""
    cycle, height = _triangle(step, span)
    return Point(TRIANGULAR_BASE + (1 - TRIANGULAR_BASE) * height * 0.5**cycle)


@register("exp_range")
def exp_range(step: int, span: Span) -> Point:
    """`triangular`, both bounds decaying exponentially to `EXP_RANGE_END` over the run."""
    decay = EXP_RANGE_END ** (step / max(span.total_steps, 1))
    return Point(triangular(step, span).lr_factor * decay)


@register("cosine")
def cosine(step: int, span: Span) -> Point:
    """Half a cosine from the highest rate to nought over the run."""
    return Point(_cosine(1.0, 0.0, step / max(span.total_steps, 1)))


@register("constant")
def constant(step: int, span: Span) -> Point:
    """The same rate throughout."""
    del step, span
    return Point(1.0)


def ends_cycle(name: str, step: int, span: Span) -> bool:
    """Whether a cycle of the schedule `name` ends with `step` steps done.

    Schedules without cycles, and cyclic ones whose single cycle is the whole run, have one end: the last step.
    """
    if step >= span.total_steps:
        return True
    if name == "sgdr":
        return step > 0 and cycle_at(step, span)[1] == 0
    return name in CYCLIC and step > 0 and step % span.first_cycle == 0
