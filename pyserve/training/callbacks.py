"""What a training or a range test tells while it runs, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

StopKind = Literal["cancel", "interrupt"]
Status = Literal["done", "cancelled", "interrupted"]

STOPPED_STATUS: Mapping[StopKind, Status] = {"cancel": "cancelled", "interrupt": "interrupted"}


@dataclass(frozen=True)
class PhaseInfo:
    """A phase that begins."""

    name: str
    phase: int  # counted from 1
    total_phases: int
    first_epoch: int  # counted from 1, over all phases
    epochs: int
    learning_rate: float  # highest, of the head
    schedule: str
    frozen: bool  # only the head learns


@dataclass(frozen=True)
class StepInfo:
    """One optimiser step that is done."""

    step: int  # done so far, counted over all epochs and workers
    total_steps: int
    epoch: int  # the running one, counted from 1
    total_epochs: int
    loss: float  # of this step, nats
    smoothed_loss: float  # debiased moving average, nats
    learning_rates: tuple[float, ...]  # of each layer group that learns, head last
    images: int  # pictures of this step
    phase: str = ""  # name of the running one


@dataclass(frozen=True)
class EpochInfo:
    """One epoch that is done, with its validation."""

    epoch: int  # counted from 1
    total_epochs: int
    metrics: Mapping[str, float]  # "train_loss"; "loss" and "accuracy" of the validation part
    best: bool
    elapsed_s: float
    phase: str = ""  # name of the one it belongs to


@dataclass(frozen=True)
class CurvePoint:
    """One mini-batch of a range test."""

    learning_rate: float
    loss: float  # nats
    smoothed_loss: float  # debiased moving average, nats
    accuracy: float  # of the mini-batch, 0…1
    run: int  # which repeat, from 0


class Callbacks(Protocol):
    """What the caller of a training hears. Called in the training's own thread."""

    def on_phase(self, info: PhaseInfo) -> None:
        """Before a phase's first step; its learning rate is known."""

    def on_step(self, info: StepInfo) -> None:
        """After every step; on a GPU several at once, so that it need not wait for each."""

    def on_epoch(self, info: EpochInfo) -> None:
        """After every epoch's validation."""

    def on_curve_point(self, point: CurvePoint) -> None:
        """After every mini-batch of a range test."""

    def on_warning(self, code: str, message: str) -> None:
        """Something that the user should know, such as ("loss_rising", "loss rose 6× …")."""

    def on_checkpoint(self, step: int, epoch: int) -> None:
        """After a checkpoint is safely on disk: steps and epochs done."""

    def on_log(self, message: str) -> None:
        """A line for the log: what is being prepared, what was loaded."""

    def should_stop(self) -> StopKind | None:
        """Asked before every step: "cancel" or "interrupt" ends the work with a checkpoint, None goes on."""


class Silent:
    """Callbacks that say nothing and never stop; a base for those that need only some."""

    def on_phase(self, info: PhaseInfo) -> None:
        """See `Callbacks.on_phase`."""

    def on_step(self, info: StepInfo) -> None:
        """See `Callbacks.on_step`."""

    def on_epoch(self, info: EpochInfo) -> None:
        """See `Callbacks.on_epoch`."""

    def on_curve_point(self, point: CurvePoint) -> None:
        """See `Callbacks.on_curve_point`."""

    def on_warning(self, code: str, message: str) -> None:
        """See `Callbacks.on_warning`."""

    def on_checkpoint(self, step: int, epoch: int) -> None:
        """See `Callbacks.on_checkpoint`."""

    def on_log(self, message: str) -> None:
        """See `Callbacks.on_log`."""

    def should_stop(self) -> StopKind | None:
        """See `Callbacks.should_stop`."""
        return None


class Stopped(Exception):  # noqa: N818  a request, not an error
    """Raised inside the work where `should_stop` asked for an end; never leaves this package."""

    def __init__(self, kind: StopKind) -> None:
        super().__init__(kind)
        self.kind: StopKind = kind


def raise_if_stopped(callbacks: Callbacks) -> None:
    """Ask `should_stop` and raise `Stopped` where it says so."""
    kind = callbacks.should_stop()
    if kind is not None:
        raise Stopped(kind)
