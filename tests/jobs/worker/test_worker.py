"""Real workers on a small dataset: what they make, and what is left of it when something dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pyserve.errors import NotFoundError
from pyserve.inference.model_store import ModelStore
from pyserve.jobs.events import (
    CheckpointSaved,
    CurvePoint,
    EpochDone,
    Event,
    JobState,
    PhaseStarted,
    SpokenWarning,
    StateChange,
    StepDone,
)
from pyserve.jobs.paths import STORE_FILE, artifacts_folder, job_folder
from pyserve.jobs.records import JobRecord, LearningRateResult, TrainResult
from pyserve.jobs.runner import LocalRunner, WorkerOrder
from pyserve.jobs.scheduler import SERVER_STOPPED, Scheduler
from pyserve.jobs.store import JobStore
from pyserve.spec import FindLearningRateSpec, TrainSpec
from pyserve.training.lr_rules import RULES
from tests.jobs.pictures import CLASSES, add_dataset
from tests.jobs.support import alive, eventually, scheduling, states, story, worker_of

REAL = LocalRunner()._command
EPOCHS = 12
STEPS = EPOCHS * 6


def tints(model_id: str, **fields: object) -> TrainSpec:
    """Enough steps that a kill comes in the middle, few enough that the test stays short."""
    values = {"architecture": "smallnet", "image_size": 16, "batch_size": 4, "epochs": EPOCHS, "seed": 3}
    values |= {"learning_rate": 0.01, "augment": "flip", "device": "cpu", "model_id": model_id}
    return TrainSpec(dataset="datasets/tints", **{**values, **fields})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a dataset, and a model "alone" whose training nothing disturbed."""
    folder = tmp_path_factory.mktemp("data")
    add_dataset(folder)
    asyncio.run(_train_alone(folder))
    return folder


async def _train_alone(folder: Path) -> None:
    async with scheduling(folder, REAL) as scheduler:
        await ended(scheduler, (await scheduler.submit(tints("alone"))).name)


async def ended(scheduler: Scheduler, name: str) -> tuple[JobRecord, list[Event]]:
    events = await story(scheduler, name)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    return scheduler._store.get(name), events


async def reached(scheduler: Scheduler, name: str, step: int) -> None:
    """Return when the job has done some steps."""
    async for event in scheduler.watch(name):
        if isinstance(event.payload, StepDone) and event.payload.step >= step:
            return
    pytest.fail(f"the job ended before step {step}: {scheduler._store.get(name).reason}")


def weights(data_dir: Path, record: JobRecord) -> bytes:
    assert isinstance(record.result, TrainResult), record.reason
    return ModelStore(data_dir).get(record.result.model).weights_path.read_bytes()


def undisturbed(data_dir: Path) -> bytes:
    return ModelStore(data_dir).get("models/alone/versions/1").weights_path.read_bytes()


def newest(data_dir: Path) -> JobRecord:
    store = JobStore(data_dir / STORE_FILE)
    [record], _ = store.list(1)
    store.close()
    return record


def test_a_training_and_what_it_leaves(data_dir: Path) -> None:
    store = JobStore(data_dir / STORE_FILE)
    record = store.list()[0][-1]
    events = [event.payload for event in store.events(record.name)]
    store.close()
    assert [e.state.value for e in events if isinstance(e, StateChange)] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    epochs = [e for e in events if isinstance(e, EpochDone)]
    assert [e.epoch for e in epochs] == list(range(1, EPOCHS + 1))
    assert set(epochs[0].metrics) == {"train_loss", "loss", "accuracy"}
    steps = [e for e in events if isinstance(e, StepDone)]
    assert (steps[0].step, steps[-1].step) == (1, STEPS)
    assert all(e.total_steps == STEPS and e.images_per_s > 0 and e.learning_rates for e in steps)
    assert any(isinstance(e, CheckpointSaved) for e in events)
    progress = record.progress
    assert (progress.step, progress.total_steps, progress.epoch, progress.total_epochs) == (
        STEPS,
        STEPS,
        EPOCHS,
        EPOCHS,
    )
    assert isinstance(record.result, TrainResult)
    assert record.result.metrics["accuracy"] == max(e.metrics["accuracy"] for e in epochs) > 0.9
    assert (record.result.epochs_run, record.result.learning_rate) == (EPOCHS, 0.01)
    names = {artifact.name for artifact in record.artifacts}
    assert names == {f"{figure}.{kind}" for figure in ("training_curves", "filters") for kind in ("png", "svg")}
    for artifact in record.artifacts:
        assert (artifacts_folder(data_dir, record.name) / artifact.name).stat().st_size == artifact.size_bytes
    info = ModelStore(data_dir).get(record.result.model)
    assert (info.labels, info.architecture, info.preprocessing.image_size) == (CLASSES, "smallnet", 16)
    told = {"dataset": "datasets/tints", "dataset_digest": "d" * 64, "job": record.name, "seed": "3"}
    assert told.items() <= info.provenance.items()
    assert TrainSpec.model_validate_json(info.provenance["recipe"]) == record.spec
    assert {"pyserve", "kernels", "torch"} <= set(info.provenance)
    assert str(data_dir) not in f"{record}{events}"


async def test_a_killed_worker_can_be_resumed_to_the_same_weights(data_dir: Path) -> None:
    async with scheduling(data_dir, REAL) as scheduler:
        job = await scheduler.submit(tints("killed"))
        await reached(scheduler, job.name, 10)
        os.kill(worker_of(scheduler, job.name).pid, signal.SIGKILL)
        record, _ = await ended(scheduler, job.name)
        assert record.state is JobState.INTERRUPTED
        assert record.reason.startswith("the worker was killed by signal 9 (SIGKILL)")
        await scheduler.resume(job.name)
        record, events = await ended(scheduler, job.name)
        assert states(events)[-1] is JobState.SUCCEEDED
        assert record.attempt == 2
    assert weights(data_dir, record) == undisturbed(data_dir)


LESSON: dict[str, object] = {"recipe": "lesson1", "weights": "models/alone/versions/1", "epochs": 3}
LESSON |= {"frozen_epochs": 1, "learning_rate": None}  # found on the way


async def test_lesson1_killed_in_any_phase_can_be_resumed_to_the_same_weights(data_dir: Path) -> None:
    async with scheduling(data_dir, REAL) as scheduler:
        alone, events = await ended(scheduler, (await scheduler.submit(tints("lesson", **LESSON))).name)
        phases = [e.payload for e in events if isinstance(e.payload, PhaseStarted)]
        assert [p.name for p in phases] == ["head on activations", "head on pictures", "whole network"]
        job = await scheduler.submit(tints("lesson-killed", **LESSON))
        for step in (3, 20, 30):  # 12 steps on activations, 6 of the head, 18 of everything
            await reached(scheduler, job.name, step)
            os.kill(worker_of(scheduler, job.name).pid, signal.SIGKILL)
            record, _ = await ended(scheduler, job.name)
            assert record.state is JobState.INTERRUPTED
            await scheduler.resume(job.name)
        record, _ = await ended(scheduler, job.name)
    assert weights(data_dir, record) == weights(data_dir, alone)
    assert record.result is not None
    assert record.progress.phase == "whole network"


async def test_two_at_once_are_as_alone_and_a_drain_can_be_resumed(data_dir: Path) -> None:
    async with scheduling(data_dir, REAL) as scheduler:
        jobs = [await scheduler.submit(tints(name)) for name in ("one", "other")]
        for job in jobs:
            await reached(scheduler, job.name, 10)
    async with scheduling(data_dir, REAL, resume_on_start=True) as scheduler:
        for job in jobs:
            record, events = await ended(scheduler, job.name)
            names = [state.value for state in states(events)]
            assert names == ["QUEUED", "RUNNING", "INTERRUPTED", "QUEUED", "RUNNING", "SUCCEEDED"]
            reasons = [e.payload.reason for e in events if isinstance(e.payload, StateChange)]
            assert reasons[2] == SERVER_STOPPED
            steps = [e.payload.step for e in events if isinstance(e.payload, StepDone)]
            assert steps == sorted(steps)  # it went on where the drain had stopped it
            assert weights(data_dir, record) == undisturbed(data_dir)


async def test_cancel_keeps_the_checkpoint_and_makes_no_model(data_dir: Path) -> None:
    async with scheduling(data_dir, REAL) as scheduler:
        job = await scheduler.submit(tints("cancelled", epochs=500))
        await reached(scheduler, job.name, 10)
        asked_at = scheduler._store.get(job.name).progress.step
        assert (await scheduler.cancel(job.name)).state is JobState.CANCELLING
        record, events = await ended(scheduler, job.name)
        assert (record.state, record.result) == (JobState.CANCELLED, None)
        kept = [e.payload for e in events if isinstance(e.payload, CheckpointSaved)]
        assert kept[-1].step >= asked_at
    assert list((job_folder(data_dir, job.name) / "checkpoints").glob("*.safetensors"))
    with pytest.raises(NotFoundError):
        ModelStore(data_dir).get("models/cancelled")


_SERVER = """
import asyncio, sys
from pathlib import Path
from pyserve.jobs.events import StepDone
from tests.jobs.support import scheduling, worker_of
from tests.jobs.worker.test_worker import REAL, reached, tints
async def main():
    async with scheduling(Path(sys.argv[1]), REAL) as scheduler:
        job = await scheduler.submit(tints("orphan"))
        await reached(scheduler, job.name, 10)
        print(job.name, worker_of(scheduler, job.name).pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_killed_server_takes_its_worker_along_and_the_job_can_be_resumed(data_dir: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(data_dir)], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert server.stdout is not None
    name, pid = server.stdout.readline().decode().split()
    server.kill()
    server.wait()
    server.stdout.close()
    await eventually(lambda: not alive(int(pid)))
    async with scheduling(data_dir, REAL) as scheduler:
        record, _ = await ended(scheduler, name)
        assert (record.state, record.reason) == (JobState.INTERRUPTED, SERVER_STOPPED)
        await scheduler.resume(name)
        record, _ = await ended(scheduler, name)
    assert weights(data_dir, record) == undisturbed(data_dir)


async def test_death_between_storing_the_model_and_saying_so_makes_no_second_model(data_dir: Path) -> None:
    store = JobStore(data_dir / STORE_FILE)
    first = store.list()[0][-1]
    store.close()
    with sqlite3.connect(data_dir / STORE_FILE) as db:  # as if the worker had died just before its last word
        db.execute("UPDATE jobs SET state = 'INTERRUPTED', result = NULL WHERE id = ?", (first.id,))
    db.close()
    async with scheduling(data_dir, REAL) as scheduler:
        await scheduler.resume(first.name)
        second, _ = await ended(scheduler, first.name)
    assert isinstance(first.result, TrainResult)
    assert isinstance(second.result, TrainResult)
    assert second.result.model == first.result.model == ModelStore(data_dir).get("models/alone").name


async def test_a_finder_and_a_training_that_takes_its_rate(data_dir: Path) -> None:
    async with scheduling(data_dir, REAL) as scheduler:
        spec = FindLearningRateSpec(training=tints("", epochs=1), steps=40, start_lr=1e-5, repeats=2)
        finder, events = await ended(scheduler, (await scheduler.submit(spec)).name)
        assert isinstance(finder.result, LearningRateResult), finder.reason
        points = tuple(e.payload for e in events if isinstance(e.payload, CurvePoint))
        assert finder.result.curve == tuple(p for p in points if p.run == 0)
        assert {p.run for p in points} == {0, 1}
        assert {s.rule for s in finder.result.suggestions} == set(RULES)
        assert (finder.progress.step, finder.progress.total_steps) == (len(points), 80)
        assert {a.name for a in finder.artifacts} == {"lr_curve.png", "lr_curve.svg"}
        same = tints("taken", epochs=1, learning_rate=None, lr_from=finder.name)
        record, events = await ended(scheduler, (await scheduler.submit(same)).name)
    assert isinstance(record.result, TrainResult), record.reason
    assert record.result.learning_rate == finder.result.learning_rate
    assert not [e for e in events if isinstance(e.payload, SpokenWarning)]


async def test_errors_end_the_job_with_their_sentence(data_dir: Path) -> None:
    async with scheduling(data_dir, REAL) as scheduler:
        job = await scheduler.submit(tints("", architecture="resnet19"))
        record, _ = await ended(scheduler, job.name)
    assert record.state is JobState.FAILED
    assert record.error is not None
    assert (record.error.status, record.error.message) == ("INVALID_ARGUMENT", record.reason)
    assert "smallnet" in record.reason


def order_of(data_dir: Path, record: JobRecord, attempt: int) -> WorkerOrder:
    return WorkerOrder(
        name=record.name,
        attempt=attempt,
        data_dir=data_dir,
        store_path=data_dir / STORE_FILE,
        threads=1,
        checkpoint_interval_s=60,
    )


async def test_a_worker_of_an_attempt_that_is_over_writes_nothing(data_dir: Path) -> None:
    record = newest(data_dir)
    worker = await LocalRunner().start(order_of(data_dir, record, 1))
    assert (await worker.wait()).startswith("the worker ended with exit code 3")
    assert newest(data_dir) == record


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
async def test_a_worker_without_a_server_ends_at_once_and_one_told_to_end_keeps_a_checkpoint(
    data_dir: Path, how: str
) -> None:
    store = JobStore(data_dir / STORE_FILE)
    store.create(tints("abandoned", epochs=500))
    record = store.claim_next()
    assert record is not None
    worker = await LocalRunner().start(order_of(data_dir, record, 1))
    await eventually(lambda: store.get(record.name).progress.step >= 5, 60)
    if how == "SIGTERM":
        os.kill(worker.pid, signal.SIGTERM)
        await worker.wait()
        ended = store.get(record.name)
        assert ended.state is JobState.INTERRUPTED
        assert ended.reason == "the worker was asked to end by signal 15 (SIGTERM)"
        assert any(isinstance(e.payload, CheckpointSaved) for e in store.events(record.name))
    else:
        worker._process.stdin.close()  # type: ignore[union-attr]
        assert "exit code 4" in await worker.wait()
        assert store.get(record.name).state is JobState.RUNNING
        store.recover(SERVER_STOPPED)
    store.close()
