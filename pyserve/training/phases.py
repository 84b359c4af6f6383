"""The phases of a training: which layers learn, for how many epochs, on which schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyserve.training.schedules import CYCLIC, SCHEDULES, Point, Span, ends_cycle


@dataclass(frozen=True)
class Phase:
    """Epochs with one optimiser and one run of a schedule; with `frozen` only the head learns."""

    epochs: int
    learning_rate: float  # highest, of the head
    schedule: str = "one_cycle"
    cycle_epochs: int | None = None  # length of the first cycle; None: the whole phase
    cycle_mult: int = 1
    frozen: bool = False

    def span(self, steps_per_epoch: int) -> Span:
        """The phase in steps."""
        cycle = (self.cycle_epochs or self.epochs) * steps_per_epoch
        return Span(self.epochs * steps_per_epoch, cycle, self.cycle_mult)

    def at(self, step: int, steps_per_epoch: int) -> Point:
        """What the schedule says for a step of the phase, counted from 0."""
        return SCHEDULES[self.schedule](step, self.span(steps_per_epoch))

    def may_stop_after(self, epochs: int) -> bool:
        """Whether early stopping may end the phase after so many of its epochs: at a cycle's end if it has any."""
        return self.schedule not in CYCLIC or ends_cycle(self.schedule, epochs, self.span(1))

    @property
    def ends_with_cycle(self) -> bool:
        """False where the phase's end cuts a cycle short."""
        span = Span(self.epochs + 1, self.cycle_epochs or self.epochs, self.cycle_mult)
        return self.schedule not in CYCLIC or ends_cycle(self.schedule, self.epochs, span)


def phase_of(phases: Sequence[Phase], epoch: int) -> tuple[int, int]:
    """The phase of an epoch (counted from 0) and the epoch at which that phase begins."""
    begin = 0
    for index, phase in enumerate(phases):
        if epoch < begin + phase.epochs:
            return index, begin
        begin += phase.epochs
    raise IndexError(f"epoch {epoch} of {begin}")
