"""Specs, settings and waiting for the tests of jobs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from pyserve.config import Settings
from pyserve.jobs.events import Event, JobState, StateChange
from pyserve.jobs.paths import STORE_FILE
from pyserve.jobs.records import TrainResult
from pyserve.jobs.runner import LocalRunner, LocalWorker
from pyserve.jobs.scheduler import Scheduler
from pyserve.jobs.store import JobStore
from pyserve.spec import TrainSpec

RESULT = TrainResult(
    model="models/fake/versions/1",
    best_epoch=1,
    epochs_run=1,
    stopped_early=False,
    metrics={"accuracy": 1.0},
    learning_rate=0.1,
    elapsed_s=1.0,
)
FAKE = (sys.executable, "-m", "tests.jobs.fake_worker")


def spec(what: str = "", **fields: object) -> TrainSpec:
    """A training; what the fake worker does stands in its `model_id`."""
    return TrainSpec(dataset="datasets/pets", model_id=what, **fields)


def states(events: list[Event]) -> list[JobState]:
    return [e.payload.state for e in events if isinstance(e.payload, StateChange)]


async def story(scheduler: Scheduler, name: str, from_seq: int = 0) -> list[Event]:
    """All events until the job has ended."""
    return [event async for event in scheduler.watch(name, from_seq)]


@asynccontextmanager
async def scheduling(
    data_dir: Path, command: tuple[str, ...] = FAKE, **settings: object
) -> AsyncIterator[Scheduler]:
    """A scheduler that runs, and is drained at the end."""
    store = JobStore(data_dir / STORE_FILE)
    kill_after_s = float(settings.pop("kill_after_s", 30.0))  # type: ignore[arg-type]
    values = {"data_dir": data_dir, "max_running_jobs": 2, "job_threads": 1, "job_nice": 0, **settings}
    scheduler = Scheduler(store, LocalRunner(command), Settings(**values), kill_after_s=kill_after_s)  # type: ignore[arg-type]
    try:
        await scheduler.start()
        yield scheduler
    finally:
        await scheduler.drain(20)
        store.close()


def worker_of(scheduler: Scheduler, name: str) -> LocalWorker:
    """The worker that runs a job."""
    worker = scheduler._running[name, scheduler._store.get(name).attempt].worker
    assert isinstance(worker, LocalWorker)
    return worker


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.02)
