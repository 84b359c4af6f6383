from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyserve.jobs.events import (
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
from pyserve.jobs.records import Progress
from pyserve.jobs.runner import WorkerOrder
from pyserve.jobs.store import JobStore, StaleAttemptError
from pyserve.jobs.worker import report as module
from pyserve.jobs.worker.process import Control
from pyserve.jobs.worker.report import Ending, JobCallbacks, JobReport
from pyserve.training.callbacks import CurvePoint as MeasuredPoint
from pyserve.training.callbacks import EpochInfo, PhaseInfo, StepInfo
from tests.jobs.support import spec


class Clock:
    """Time that goes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


class Told:
    """A job that runs, its report, and what was told since."""

    def __init__(self, path: Path) -> None:
        self.store = JobStore(path)
        self.name = self.store.create(spec()).name
        self.store.claim_next()
        order = WorkerOrder(
            name=self.name, attempt=1, data_dir=path.parent, store_path=path, threads=1, checkpoint_interval_s=1
        )
        self.wakes = 0
        self.report = JobReport(self.store, order, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def payloads(self) -> list[Payload]:
        return [event.payload for event in self.store.events(self.name, 3)]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    value = Told(tmp_path / "jobs.sqlite3")
    yield value
    value.store.close()


def step(number: int) -> StepInfo:
    return StepInfo(
        step=number,
        total_steps=100,
        epoch=1 + number // 50,
        total_epochs=2,
        loss=9.0,
        smoothed_loss=1.0 / number,
        learning_rates=(0.1, 0.2),
        images=8,
    )


def test_steps_are_told_twice_a_second_and_at_the_end_of_an_epoch(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    callbacks = JobCallbacks(told.report, Control())
    for number in range(1, 49):
        assert callbacks.should_stop() is None
        clock.now += 0.125  # a binary fraction: no rounding
        callbacks.on_step(step(number))
    info = EpochInfo(1, 2, {"loss": 0.5, "accuracy": 0.9, "train_loss": 0.4}, True, 4.9)
    callbacks.on_epoch(info)
    steps = [p for p in told.payloads() if isinstance(p, StepDone)]
    assert [p.step for p in steps] == [1, *range(5, 48, 4), 48]
    assert steps[0].images_per_s == 64
    assert steps[1].images_per_s == 64
    assert (steps[1].loss, steps[1].learning_rates) == (1 / 5, (0.1, 0.2))
    last = told.payloads()[-1]
    assert last == EpochDone(epoch=1, total_epochs=2, metrics=dict(info.metrics), best=True, elapsed_s=4.9)
    assert told.store.get(told.name).progress == Progress(step=48, total_steps=100, epoch=1, total_epochs=2)
    clock.now += 60  # the validation is not counted as training time
    callbacks.on_epoch(info)
    clock.now += 0.5
    callbacks.on_step(step(50))
    [again] = [p for p in told.payloads() if isinstance(p, StepDone) and p.step == 50]
    assert again.images_per_s == 16
    assert told.wakes == len(told.payloads())


def test_phases_are_told_and_named_in_what_follows(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    callbacks = JobCallbacks(told.report, Control())
    callbacks.on_step(dataclasses.replace(step(5), phase="head"))
    callbacks.on_curve_point(MeasuredPoint(1e-3, 2.0, 2.1, 0.5, 1))
    assert told.store.get(told.name).progress.step == 5  # a training's own range test is no progress of its
    clock.now += 60
    callbacks.on_phase(PhaseInfo("whole network", 2, 2, 4, 7, 0.01, "sgdr", frozen=False))
    assert told.store.get(told.name).progress == Progress(
        step=5, total_steps=100, total_epochs=2, phase="whole network"
    )
    clock.now += 0.5
    callbacks.on_step(dataclasses.replace(step(6), phase="whole network"))
    first, _, phase, last = told.payloads()
    assert phase == PhaseStarted(
        name="whole network",
        phase=2,
        total_phases=2,
        first_epoch=4,
        epochs=7,
        learning_rate=0.01,
        schedule="sgdr",
        frozen=False,
    )
    assert isinstance(first, StepDone)
    assert isinstance(last, StepDone)
    assert (first.phase, last.phase) == ("head", "whole network")
    assert last.images_per_s == 16  # what came before the phase is not counted
    callbacks.on_epoch(EpochInfo(1, 2, {"loss": 0.5}, True, 4.9, "whole network"))
    assert told.payloads()[-1].phase == "whole network"  # type: ignore[union-attr]


def test_everything_else_is_told_at_once(told: Told) -> None:
    callbacks = JobCallbacks(told.report, Control(), range_points=7)
    callbacks.on_curve_point(MeasuredPoint(1e-3, 2.0, 2.1, 0.5, 1))
    assert told.store.get(told.name).progress == Progress(step=1, total_steps=7)
    callbacks.on_warning("loss_rising", "loss rose")
    callbacks.on_checkpoint(5, 1)
    callbacks.on_log("weights from /srv/weights/net.pth")
    assert told.payloads() == [
        CurvePoint(learning_rate=1e-3, loss=2.0, smoothed_loss=2.1, run=1),
        SpokenWarning(code="loss_rising", message="loss rose"),
        CheckpointSaved(step=5, epoch=1),
        LogLine(message="weights from net.pth"),
    ]


def test_a_stop_is_handed_on(told: Told) -> None:
    control = Control()
    callbacks = JobCallbacks(told.report, control)
    control.stop = "cancel"
    assert callbacks.should_stop() == "cancel"


def test_a_stale_worker_hears_so(told: Told) -> None:
    told.report.check()
    told.store.recover("gone")
    with pytest.raises(StaleAttemptError):
        told.report.tell(LogLine(message="late"))
    with pytest.raises(StaleAttemptError):
        told.report.finish(Ending(JobState.SUCCEEDED))
    told.report.record = told.store.get(told.name)
    with pytest.raises(StaleAttemptError, match="nothing to do for attempt 1"):
        told.report.check()
    assert told.wakes == 0
