"""What a job's work tells, as events in the store."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyserve.jobs.events import (
    ACTIVE,
    CheckpointSaved,
    CurvePoint,
    EpochDone,
    JobState,
    LogLine,
    Payload,
    PhaseStarted,
    SpokenWarning,
    StepDone,
)
from pyserve.jobs.paths import strike_folders
from pyserve.jobs.records import JobError, JobRecord, Progress, Result
from pyserve.jobs.store import JobStore, StaleAttemptError

if TYPE_CHECKING:
    from pyserve.jobs.runner import StopKind, WorkerOrder
    from pyserve.jobs.worker.process import Control
    from pyserve.training.callbacks import CurvePoint as MeasuredPoint
    from pyserve.training.callbacks import EpochInfo, PhaseInfo, StepInfo

log = logging.getLogger(__name__)

_STEP_EVERY_S = 0.5


@dataclass(frozen=True)
class Ending:
    """How the work ended."""

    state: JobState
    reason: str = ""
    result: Result | None = None
    error: JobError | None = None


class JobReport:
    """The job's log, written under this worker's attempt. Every write wakes the server.

    Args:
        wake: called after each write.
    """

    def __init__(self, store: JobStore, order: WorkerOrder, wake: Callable[[], None]) -> None:
        self.store = store
        self.record: JobRecord = store.get(order.name)
        self._attempt = order.attempt
        self._wake = wake

    @property
    def resumes(self) -> bool:
        """Whether a worker before this one has run the job."""
        return self._attempt > 1

    def check(self) -> None:
        """Ask whether this attempt is the one that runs.

        Raises:
            StaleAttemptError: it is not.
        """
        if self.record.attempt != self._attempt or self.record.state not in ACTIVE:
            raise StaleAttemptError(
                f"{self.record.name} is {self.record.state.value} in attempt {self.record.attempt}: "
                f"nothing to do for attempt {self._attempt}"
            )

    def tell(self, payload: Payload, progress: Progress | None = None) -> None:
        """Add an event.

        Raises:
            StaleAttemptError: this attempt is no longer the one that runs.
        """
        self.store.append(self.record.name, self._attempt, payload, progress)
        self._wake()

    def warn(self, code: str, message: str) -> None:
        """Add a warning."""
        log.warning("%s: %s", code, message)
        self.tell(SpokenWarning(code=code, message=strike_folders(message)))

    def finish(self, ending: Ending) -> None:
        """End the job.

        Raises:
            StaleAttemptError: this attempt is no longer the one that runs.
        """
        name = self.record.name
        self.store.finish(
            name, self._attempt, ending.state, ending.reason, result=ending.result, error=ending.error
        )
        log.info("%s is %s %s", name, ending.state.value, ending.reason)
        self._wake()


class JobCallbacks:
    """`pyserve.training.callbacks.Callbacks` of a job.

    Args:
        range_points: mini-batches that a job which is a range test does at most, over all repeats; 0: a training,
            whose own range tests do not count as its progress.
    """

    def __init__(self, report: JobReport, control: Control, *, range_points: int = 0) -> None:
        self._report = report
        self._control = control
        self._range_points = range_points
        self._points = 0
        self._progress = report.record.progress
        self._untold: StepInfo | None = None
        self._images = 0  # since the last step event
        self._since: float | None = None  # when that was; None: no step was done yet
        self._asked_at = time.monotonic()

    def on_phase(self, info: PhaseInfo) -> None:
        """Tell of a phase that begins."""
        self._since = None  # what came in between, such as a range test, is no training
        self._asked_at = time.monotonic()
        self._progress = self._progress.model_copy(update={"phase": info.name})
        self._report.tell(PhaseStarted(**dataclasses.asdict(info)), self._progress)

    def on_step(self, info: StepInfo) -> None:
        """Tell of the first step, and then of one every half second."""
        self._images += info.images
        self._untold = info
        if self._since is None or time.monotonic() - self._since >= _STEP_EVERY_S:
            self._tell_step()

    def on_epoch(self, info: EpochInfo) -> None:
        """Tell of the epoch, and before it of its last step."""
        if self._untold is not None:
            self._tell_step()
        payload = EpochDone(
            epoch=info.epoch,
            total_epochs=info.total_epochs,
            metrics=dict(info.metrics),
            best=info.best,
            elapsed_s=info.elapsed_s,
            phase=info.phase,
        )
        done = {"epoch": info.epoch, "total_epochs": info.total_epochs}
        self._progress = self._progress.model_copy(update=done)
        self._report.tell(payload, self._progress)
        self._images, self._since = 0, time.monotonic()

    def on_curve_point(self, point: MeasuredPoint) -> None:
        """Tell of every mini-batch of a range test."""
        self._points += 1
        payload = CurvePoint(
            learning_rate=point.learning_rate, loss=point.loss, smoothed_loss=point.smoothed_loss, run=point.run
        )
        progress = Progress(step=self._points, total_steps=self._range_points) if self._range_points else None
        self._report.tell(payload, progress)

    def on_warning(self, code: str, message: str) -> None:
        """Tell of a warning."""
        self._report.warn(code, message)

    def on_checkpoint(self, step: int, epoch: int) -> None:
        """Tell of a checkpoint."""
        self._report.tell(CheckpointSaved(step=step, epoch=epoch))

    def on_log(self, message: str) -> None:
        """Tell a line."""
        log.info("%s", message)
        self._report.tell(LogLine(message=strike_folders(message)))

    def should_stop(self) -> StopKind | None:
        """What the server asked for."""
        self._asked_at = time.monotonic()
        return self._control.stop

    def _tell_step(self) -> None:
        info, now = self._untold, time.monotonic()
        assert info is not None  # noqa: S101  callers ask first
        begin = self._asked_at if self._since is None else self._since
        payload = StepDone(
            step=info.step,
            total_steps=info.total_steps,
            loss=info.smoothed_loss,
            learning_rates=info.learning_rates,
            images_per_s=self._images / max(now - begin, 1e-9),
            phase=info.phase,
        )
        self._progress = Progress(
            step=info.step,
            total_steps=info.total_steps,
            epoch=info.epoch - 1,
            total_epochs=info.total_epochs,
            phase=info.phase,
        )
        self._report.tell(payload, self._progress)
        self._untold, self._images, self._since = None, 0, now
