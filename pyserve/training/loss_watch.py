"""Watches the training loss and says aloud what it means: rising, not finite."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

BETA = 0.9  # of the moving average: about the last ten steps
_SETTLE_STEPS = 10  # the first losses of a fresh head say little
_RISE_FACTOR = 3.0
_RISE_NATS = 0.25  # three times next to nothing is still next to nothing


def debiased(average: float, beta: float, count: int) -> float:
    """An exponential moving average that began at 0, corrected for that (Kingma & Ba, arXiv 1412.6980)."""
    return average / (1 - beta**count)


@dataclass
class LossWatch:
    """The smoothed loss of a training and what to say about it; its fields are part of a checkpoint."""

    average: float = 0.0
    count: int = 0
    lowest: float = math.inf
    lowest_step: int = 0
    warned: bool = False

    @property
    def smoothed(self) -> float:
        """The debiased moving average so far, nats."""
        return debiased(self.average, BETA, self.count) if self.count else 0.0

    def add(self, step: int, loss: float, learning_rate: float, suggested_lr: float | None) -> str | None:
        """Take in one step's (finite) loss; a sentence where it rose far above its lowest, told once per rise."""
        self.average = BETA * self.average + (1 - BETA) * loss
        self.count += 1
        smoothed = self.smoothed
        if self.count >= _SETTLE_STEPS and smoothed < self.lowest:
            self.lowest, self.lowest_step, self.warned = smoothed, step, False
        elif not self.warned and smoothed > max(_RISE_FACTOR * self.lowest, self.lowest + _RISE_NATS):
            self.warned = True
            return (
                f"loss rose {smoothed / self.lowest:.2g}× in {step - self.lowest_step} steps "
                f"({self.lowest:.3g} → {smoothed:.3g}) at lr {learning_rate:.2g}: "
                f"the learning rate is probably too high; {advice(suggested_lr)}"
            )
        return None

    def restart(self) -> None:
        """Forget the past: another phase begins, with other layers learning."""
        fresh = LossWatch()
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(fresh, field.name))


def advice(suggested_lr: float | None) -> str:
    """What to do about a rate that is too high."""
    if suggested_lr is None:
        return "the learning-rate finder suggests one that fits"
    return f"the finder suggests {suggested_lr:.2g}"


def not_finite(what: str, step: int, learning_rate: float, suggested_lr: float | None, kept_step: int) -> str:
    """The sentence that ends a training whose numbers are no longer finite; `kept_step` 0: no checkpoint yet."""
    kept = f"; the last good checkpoint, of step {kept_step}, is kept" if kept_step else ""
    return (
        f"the {what} at step {step}, lr {learning_rate:.2g}: "
        f"the learning rate is probably too high; {advice(suggested_lr)}{kept}"
    )
