"""The phases of a training: which layers learn, on what, for how many epochs, on which schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyserve.training.schedules import CYCLIC, SCHEDULES, Point, Span, ends_cycle

_GROWING = 3 / 4  # of the epochs, in which progressive resizing reaches the full size


@dataclass(frozen=True)
class Phase:
    """Epochs with one optimiser and one run of a schedule; with `frozen` only the head learns.

    Attributes:
        learning_rate: highest, of the head; None: a range test finds it when the phase begins.
        cycle_epochs: length of the first cycle; None: the whole phase is one.
        shape: options of the schedule's function, such as (("pct_start", 0.3),).
        precomputed: on activations of the frozen body in place of pictures.
        rate_from_activations: the range test reads those too, which takes seconds.
        start_image_size: side of the pictures in the first epoch, pixels; None: all epochs have the full size.
        name: what events call it.
    """

    epochs: int
    learning_rate: float | None
    schedule: str = "one_cycle"
    cycle_epochs: int | None = None
    cycle_mult: int = 1
    frozen: bool = False
    shape: tuple[tuple[str, float], ...] = ()
    precomputed: bool = False
    rate_from_activations: bool = False
    start_image_size: int | None = None
    name: str = ""

    def span(self, steps_per_epoch: int) -> Span:
        """The phase in steps."""
        cycle = (self.cycle_epochs or self.epochs) * steps_per_epoch
        return Span(self.epochs * steps_per_epoch, cycle, self.cycle_mult)

    def at(self, step: int, steps_per_epoch: int) -> Point:
        """What the schedule says for a step of the phase, counted from 0."""
        return SCHEDULES[self.schedule](step, self.span(steps_per_epoch), **dict(self.shape))

    def may_stop_after(self, epochs: int) -> bool:
        """Whether early stopping may end the phase after so many of its epochs: at a cycle's end if it has any."""
        return self.schedule not in CYCLIC or ends_cycle(self.schedule, epochs, self.span(1))

    @property
    def ends_with_cycle(self) -> bool:
        """False where the phase's end cuts a cycle short."""
        span = Span(self.epochs + 1, self.cycle_epochs or self.epochs, self.cycle_mult)
        return self.schedule not in CYCLIC or ends_cycle(self.schedule, self.epochs, span)

    def image_size_at(self, epoch: int, full: int) -> int:
        """Side of the training pictures in an epoch of the phase, counted from 0, pixels.

        Progressive resizing grows evenly to the full size over three quarters of the epochs, in steps of a
        fourteenth of it (16 pixels of 224).
        """
        if self.start_image_size is None:
            return full
        growing = max(round(_GROWING * self.epochs), 1)
        step = max(round(full / 14), 1)
        grown = self.start_image_size + (full - self.start_image_size) * epoch / growing
        return min(max(round(grown / step) * step, self.start_image_size), full) if epoch < growing else full


def phase_of(phases: Sequence[Phase], epoch: int) -> tuple[int, int]:
    """The phase of an epoch (counted from 0) and the epoch at which that phase begins."""
    begin = 0
    for index, phase in enumerate(phases):
        if epoch < begin + phase.epochs:
            return index, begin
        begin += phase.epochs
    raise IndexError(f"epoch {epoch} of {begin}")
