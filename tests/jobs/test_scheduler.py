from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from pyserve.data import staging
from pyserve.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from pyserve.jobs.events import Event, JobState, StepDone
from pyserve.jobs.paths import STORE_FILE, job_folder
from pyserve.jobs.scheduler import SERVER_STOPPED, Scheduler
from pyserve.jobs.store import JobStore
from pyserve.spec import FindLearningRateSpec
from tests.jobs.support import RESULT, alive, eventually, scheduling, spec, states, story

MISSING = "jobs/01890000-0000-7000-8000-000000000000"


async def begun(scheduler: Scheduler, name: str) -> None:
    """Return when the fake worker has done its steps."""
    record = await scheduler.wait_for_event(name, 5, 30)
    assert record.last_seq >= 5


async def ended(scheduler: Scheduler, name: str) -> tuple[JobState, str]:
    events = await story(scheduler, name)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    record = scheduler._store.get(name)
    return record.state, record.reason


async def test_a_job_runs_and_tells_its_story(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec())
        events = await story(scheduler, job.name)
        assert states(events) == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
        assert [e.payload.step for e in events if isinstance(e.payload, StepDone)] == [1, 2, 3]
        record = scheduler._store.get(job.name)
        assert (record.attempt, record.result, record.progress.step) == (1, RESULT, 3)
        assert await story(scheduler, job.name, 4) == events[3:]
        assert await story(scheduler, job.name, len(events) + 1) == []


async def test_many_watchers_at_once(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec("waits"))
        watchers = [asyncio.create_task(story(scheduler, job.name)) for _ in range(10)]
        leaver = asyncio.create_task(story(scheduler, job.name))
        await begun(scheduler, job.name)
        leaver.cancel()
        await scheduler.cancel(job.name)
        stories = await asyncio.gather(*watchers)
        assert all(told == stories[0] for told in stories)
        assert states(stories[0])[-1] is JobState.CANCELLED
        assert scheduler._listeners == {}


async def test_watchers_are_woken_by_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyserve.jobs.scheduler._LOOK_EVERY_S", 300.0)
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec())
        assert states(await asyncio.wait_for(story(scheduler, job.name), 60))[-1] is JobState.SUCCEEDED


async def test_a_wake_that_got_lost_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyserve.jobs.scheduler._LOOK_EVERY_S", 0.05)
    async with scheduling(tmp_path) as scheduler:
        job = scheduler._store.create(spec())  # nobody tells the scheduler
        monkeypatch.setattr(scheduler, "_notify", lambda name: None)
        assert states(await asyncio.wait_for(story(scheduler, job.name), 60))[-1] is JobState.SUCCEEDED


async def test_waiting_for_an_event_ends_in_time(tmp_path: Path) -> None:
    async with scheduling(tmp_path, max_running_jobs=1) as scheduler:
        job = await scheduler.submit(spec("waits"))
        await begun(scheduler, job.name)
        record = await scheduler.wait_for_event(job.name, 99, 0.05)
        assert record.state is JobState.RUNNING
        await scheduler.cancel(job.name)
        assert (await scheduler.wait_for_event(job.name, 99, 30)).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("killed", "the worker was killed by signal 9 (SIGKILL)"),
        ("crash", "the worker ended with exit code 7: OSError: file.bin is gone"),
        ("silent", "the worker ended without a result"),
    ],
)
async def test_a_worker_that_dies_leaves_its_job_interrupted(tmp_path: Path, what: str, reason: str) -> None:
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec(what))
        state, told = await ended(scheduler, job.name)
        assert state is JobState.INTERRUPTED
        assert told.startswith(reason)


async def test_resume_goes_on_in_the_same_log(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec("killed"))
        assert (await ended(scheduler, job.name))[0] is JobState.INTERRUPTED
        resumed = await scheduler.resume(job.name)
        assert (resumed.state, resumed.reason) == (JobState.QUEUED, "")
        events = await story(scheduler, job.name)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        names = [state.value for state in states(events)]
        assert names == ["QUEUED", "RUNNING", "INTERRUPTED", "QUEUED", "RUNNING", "SUCCEEDED"]
        assert scheduler._store.get(job.name).attempt == 2
        with pytest.raises(FailedPreconditionError, match="is SUCCEEDED"):
            await scheduler.resume(job.name)


async def test_resume_while_the_worker_before_is_still_ending(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec("lingers"))
        assert await ended(scheduler, job.name) == (JobState.INTERRUPTED, "enough for today")
        await scheduler.resume(job.name)
        await eventually(lambda: len(scheduler._running) == 2)
        await eventually(lambda: len(scheduler._running) == 1)
        await scheduler.cancel(job.name)
        assert await ended(scheduler, job.name) == (JobState.CANCELLED, "heard cancel")


async def test_a_worker_that_cannot_be_started(tmp_path: Path) -> None:
    async with scheduling(tmp_path, (str(tmp_path / "no-such-program"),)) as scheduler:
        job = await scheduler.submit(spec())
        state, reason = await ended(scheduler, job.name)
        assert state is JobState.INTERRUPTED
        assert reason == "the worker could not be started; the server's log says why"


async def test_oldest_first_and_not_too_many_at_once(tmp_path: Path) -> None:
    async with scheduling(tmp_path, max_running_jobs=1, max_queued_jobs=2) as scheduler:
        first = await scheduler.submit(spec("waits"))
        await begun(scheduler, first.name)
        second, third = await scheduler.submit(spec("waits")), await scheduler.submit(spec())
        with pytest.raises(ResourceExhaustedError, match="2 jobs wait already"):
            await scheduler.submit(spec())
        assert scheduler._store.get(second.name).state is JobState.QUEUED
        await scheduler.cancel(first.name)
        await begun(scheduler, second.name)
        assert scheduler._store.get(third.name).state is JobState.QUEUED
        await scheduler.cancel(second.name)
        assert (await ended(scheduler, third.name))[0] is JobState.SUCCEEDED


async def test_cancel_of_a_queued_job_is_immediate(tmp_path: Path) -> None:
    async with scheduling(tmp_path, max_running_jobs=1) as scheduler:
        first = await scheduler.submit(spec("waits"))
        second = await scheduler.submit(spec())
        assert (await scheduler.cancel(second.name)).state is JobState.CANCELLED
        assert states(await story(scheduler, second.name)) == [JobState.QUEUED, JobState.CANCELLED]
        await begun(scheduler, first.name)
        assert (await scheduler.cancel(first.name)).state is JobState.CANCELLING
        assert await ended(scheduler, first.name) == (JobState.CANCELLED, "heard cancel")
        with pytest.raises(FailedPreconditionError, match="is CANCELLED"):
            await scheduler.cancel(first.name)


async def test_cancel_while_the_worker_starts(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec("waits"))
        await eventually(lambda: scheduler._store.get(job.name).state is JobState.RUNNING)
        await scheduler.cancel(job.name)
        assert (await ended(scheduler, job.name))[0] is JobState.CANCELLED


async def test_a_deaf_worker_is_killed(tmp_path: Path) -> None:
    async with scheduling(tmp_path, kill_after_s=0.2) as scheduler:
        job = await scheduler.submit(spec("deaf"))
        await begun(scheduler, job.name)
        await scheduler.cancel(job.name)
        state, reason = await ended(scheduler, job.name)
        assert state is JobState.CANCELLED
        assert reason == "cancelled; the worker did not stop within 0.2 s and was killed"


async def test_drain_interrupts_and_frees_the_folder(tmp_path: Path) -> None:
    async with scheduling(tmp_path, max_running_jobs=2) as scheduler:
        willing, deaf = await scheduler.submit(spec("waits")), await scheduler.submit(spec("deaf"))
        waiting = await scheduler.submit(spec())
        for job in (willing, deaf):
            await begun(scheduler, job.name)
        watcher = asyncio.create_task(story(scheduler, willing.name))
        await scheduler.drain(1.0)
        store = scheduler._store
        assert (store.get(willing.name).state, store.get(willing.name).reason) == (
            JobState.INTERRUPTED,
            "heard interrupt",
        )
        assert (store.get(deaf.name).state, store.get(deaf.name).reason) == (JobState.INTERRUPTED, SERVER_STOPPED)
        assert store.get(waiting.name).state is JobState.QUEUED
        assert states(await watcher)[-1] is JobState.INTERRUPTED
        for call in (scheduler.submit(spec()), scheduler.resume(willing.name)):
            with pytest.raises(UnavailableError, match="stopping"):
                await call
    async with scheduling(tmp_path) as again:  # the folder is free, and the queue goes on
        assert (await ended(again, waiting.name))[0] is JobState.SUCCEEDED


async def test_a_second_server_is_refused(tmp_path: Path) -> None:
    async with scheduling(tmp_path):
        with pytest.raises(FailedPreconditionError, match=r"in use by another server \(process \d+\)"):
            async with scheduling(tmp_path):
                pytest.fail("two servers have one folder")


def left_behind(tmp_path: Path) -> dict[str, str]:
    """What a server that was killed leaves in the store."""
    store = JobStore(tmp_path / STORE_FILE)
    names = {}
    for what in ("running", "cancelling"):
        store.create(spec("killed"))
        record = store.claim_next()
        assert record is not None
        names[what] = record.name
    store.cancel(names["cancelling"])
    names["queued"] = store.create(spec("waits")).name
    store.close()
    return names


async def test_recovery_after_a_server_that_died(tmp_path: Path) -> None:
    names = left_behind(tmp_path)
    async with scheduling(tmp_path) as scheduler:
        assert await ended(scheduler, names["running"]) == (JobState.INTERRUPTED, SERVER_STOPPED)
        assert await ended(scheduler, names["cancelling"]) == (JobState.CANCELLED, SERVER_STOPPED)
        await scheduler.wait_for_event(names["queued"], 5, 30)
        assert scheduler._store.get(names["queued"]).state is JobState.RUNNING


async def test_resume_on_start(tmp_path: Path) -> None:
    names = left_behind(tmp_path)
    async with scheduling(tmp_path, resume_on_start=True) as scheduler:
        events = await story(scheduler, names["running"])
        assert states(events)[-3:] == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
        assert scheduler._store.get(names["running"]).attempt == 2
        assert scheduler._store.get(names["cancelling"]).state is JobState.CANCELLED


_SERVER = """
import asyncio, sys
from pathlib import Path
from tests.jobs.support import scheduling, spec, worker_of
async def main():
    async with scheduling(Path(sys.argv[1])) as scheduler:
        job = await scheduler.submit(spec("waits"))
        await scheduler.wait_for_event(job.name, 5, 30)
        print(job.name, worker_of(scheduler, job.name).pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_killed_server_leaves_no_worker_and_no_running_job(tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(tmp_path)], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert server.stdout is not None
    name, pid = server.stdout.readline().decode().split()
    server.kill()
    server.wait()
    server.stdout.close()
    await eventually(lambda: not alive(int(pid)))
    async with scheduling(tmp_path) as scheduler:
        assert await ended(scheduler, name) == (JobState.INTERRUPTED, SERVER_STOPPED)


async def test_request_ids(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        request_id = str(uuid.uuid4())
        first = await scheduler.submit(spec(), request_id)
        assert (await ended(scheduler, first.name))[0] is JobState.SUCCEEDED
        assert (await scheduler.submit(spec(), request_id)).name == first.name
        with pytest.raises(InvalidArgumentError, match="request_id"):
            await scheduler.submit(spec(epochs=9), request_id)


async def test_lr_from_must_name_a_finder_that_has_found_something(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        with pytest.raises(NotFoundError, match=MISSING):
            await scheduler.submit(spec(lr_from=MISSING))
        training = await scheduler.submit(spec())
        with pytest.raises(InvalidArgumentError, match="it is a training"):
            await scheduler.submit(spec(lr_from=training.name))
        finder = await scheduler.submit(FindLearningRateSpec(training=spec("waits")))
        with pytest.raises(FailedPreconditionError, match="wait until it has SUCCEEDED"):
            await scheduler.submit(spec(lr_from=finder.name))


async def test_jobs_that_do_not_exist(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        for call in (scheduler.cancel(MISSING), scheduler.resume(MISSING), story(scheduler, MISSING)):
            with pytest.raises(NotFoundError, match=MISSING):
                await call
        job = await scheduler.submit(spec())
        with pytest.raises(InvalidArgumentError, match="from_seq"):
            await story(scheduler, job.name, -1)


async def test_drain_of_a_scheduler_that_never_started(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        other = Scheduler(scheduler._store, scheduler._runner, scheduler._settings)
        await other.drain(1)
        job = await scheduler.submit(spec())
        told: list[Event] = await story(scheduler, job.name)
        assert told


async def test_delete(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        job, other = await scheduler.submit(spec()), await scheduler.submit(spec())
        await ended(scheduler, other.name)
        await ended(scheduler, job.name)
        folder = job_folder(tmp_path, job.name)
        assert folder.is_dir()
        await scheduler.delete(job.name)  # at once: its worker may still be about to leave
        assert not folder.exists()
        assert job_folder(tmp_path, other.name).is_dir()
        for call in (scheduler.delete, scheduler.cancel):
            with pytest.raises(NotFoundError, match=other.name):
                await call(job.name)
        assert [record.name for record in scheduler._store.list()[0]] == [other.name]
        assert (await scheduler.submit(spec())).name > job.name


async def test_delete_waits_for_what_is_under_way(tmp_path: Path) -> None:
    async with scheduling(tmp_path, max_running_jobs=1) as scheduler:
        running, queued = await scheduler.submit(spec("waits")), await scheduler.submit(spec())
        await begun(scheduler, running.name)
        for job, state in ((running, "RUNNING"), (queued, "QUEUED")):
            with pytest.raises(FailedPreconditionError, match=f"{job.name} is {state}: cancel it first"):
                await scheduler.delete(job.name)
        await scheduler.cancel(running.name)
        await scheduler.cancel(queued.name)
        await ended(scheduler, running.name)
        for job in (running, queued):
            await scheduler.delete(job.name)
        assert scheduler._store.list()[0] == []
        assert list((tmp_path / "jobs").iterdir()) == []


async def test_a_crash_while_deleting_leaves_a_job_that_can_be_deleted(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as scheduler:
        job = await scheduler.submit(spec())
        await ended(scheduler, job.name)

        def crash(folder: Path) -> None:
            staging.remove_folder(folder)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scheduler._store.delete(job.name, lambda: crash(job_folder(tmp_path, job.name)))
        assert scheduler._store.get(job.name).state is JobState.SUCCEEDED
        await scheduler.delete(job.name)
