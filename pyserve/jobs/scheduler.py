"""The queue and its workers: starting, stopping, recovering, draining, and waking those who watch.

The store says what is true; this says when to look. Workers wake it through a pipe, and everything that waits also
looks by itself every second or so, so that a wake that got lost costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyserve.config import Settings
from pyserve.data.staging import remove_folder, remove_leftovers
from pyserve.errors import AbortedError, UnavailableError
from pyserve.jobs.data_lock import DataLock
from pyserve.jobs.events import ENDED, Event, JobState
from pyserve.jobs.lr_from import finder_of
from pyserve.jobs.paths import job_folder
from pyserve.jobs.records import JobRecord
from pyserve.jobs.runner import Runner, StopKind, Worker, WorkerOrder
from pyserve.jobs.store import JobStore, StaleAttemptError
from pyserve.spec import JobSpec, TrainSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVER_STOPPED = "the server stopped while the job was running"
_LOOK_EVERY_S = 1.0
_EVENTS_PER_READ = 500
_DRAIN_RETRY_S = 5.0
_LEAVE_S = 10.0  # a worker that has said its last word needs to end


@dataclass
class _Running:
    """A job that has a worker, or is about to get one."""

    record: JobRecord
    worker: Worker | None = None
    stop: StopKind | None = None
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    end_reason: str = ""  # why the scheduler killed it
    task: asyncio.Task[None] | None = None

    def ask_to_stop(self, stop: StopKind) -> None:
        """The first one asked counts."""
        self.stop = self.stop or stop
        self.stop_asked.set()

    def kill(self, reason: str) -> None:
        """End the worker now; the reason is told to users."""
        self.end_reason = reason
        if self.worker is not None:
            self.worker.kill()


class Scheduler:
    """Runs the store's jobs, oldest first, `max_running_jobs` at once. Belongs to one event loop.

    Args:
        store: the jobs.
        runner: starts their workers.
        settings: `data_dir`, limits, and what workers need.
        kill_after_s: a worker that was asked to cancel and goes on for this long is killed, seconds. It must allow
            for one step and one checkpoint of a large network.
        on_end: called with the name of each job whose worker has ended, in a thread.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        settings: Settings,
        *,
        kill_after_s: float = 30.0,
        on_end: Callable[[str], None] | None = None,
    ) -> None:
        self._store = store
        self._runner = runner
        self._settings = settings
        self._data_dir = settings.data_dir.resolve()
        self._kill_after_s = kill_after_s
        self._on_end = on_end
        # by name and attempt: a worker that has said its last word may still be there when the next one starts
        self._running: dict[tuple[str, int], _Running] = {}
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._wake = asyncio.Event()
        self._changing = asyncio.Lock()  # what the store says of a job and `_running` change together
        self._draining = False
        self._lock: DataLock | None = None
        self._dispatcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the data folder, end what a dead server left running, and begin to run the queue.

        Raises:
            FailedPreconditionError: another server has the data folder; tells its process.
        """
        self._lock = DataLock(self._data_dir)
        for record in await asyncio.to_thread(self._store.recover, SERVER_STOPPED):
            log.warning("%s is %s: %s", record.name, record.state.value, record.reason)
        await asyncio.to_thread(remove_leftovers, self._data_dir / "jobs")
        if self._settings.resume_on_start:
            await asyncio.to_thread(self._resume_all)
        self._dispatcher = asyncio.create_task(self._dispatch())
        self._wake.set()

    async def submit(self, spec: JobSpec, request_id: str = "") -> JobRecord:
        """Queue a job; the same `request_id` with the same spec gives the first one.

        Raises:
            InvalidArgumentError: `request_id` was used for another request, or `lr_from` is not a finder.
            NotFoundError, FailedPreconditionError: `lr_from` does not exist, or has found nothing.
            ResourceExhaustedError: too many jobs wait.
            UnavailableError: the server is stopping.
        """
        self._refuse_when_draining()
        if isinstance(spec, TrainSpec):
            await asyncio.to_thread(finder_of, self._store, spec)
        limit = self._settings.max_queued_jobs
        record = await asyncio.to_thread(self._store.create, spec, request_id, max_queued=limit)
        self._notify(record.name)
        return record

    async def resume(self, name: str) -> JobRecord:
        """Queue an INTERRUPTED job again; it goes on from its last checkpoint.

        Raises:
            NotFoundError: there is no such job.
            FailedPreconditionError: it is in another state.
            ResourceExhaustedError: too many jobs wait.
            UnavailableError: the server is stopping.
        """
        self._refuse_when_draining()
        limit = self._settings.max_queued_jobs
        record = await asyncio.to_thread(self._store.resume, name, max_queued=limit)
        self._notify(name)
        return record

    async def cancel(self, name: str) -> JobRecord:
        """End a job: at once where it has no worker, else CANCELLING until its worker has stopped.

        Raises:
            NotFoundError: there is no such job.
            FailedPreconditionError: it has ended.
        """
        async with self._changing:
            record = await asyncio.to_thread(self._store.cancel, name)
            running = self._running.get((name, record.attempt))
            if record.state is JobState.CANCELLING and running is not None:
                running.ask_to_stop("cancel")
        self._notify(name)
        return record

    async def delete(self, name: str) -> None:
        """Remove a job that has ended, with its log and files.

        Raises:
            NotFoundError: there is no such job.
            FailedPreconditionError: it has not ended, or is needed by one that has not.
            AbortedError: its worker is still about to leave.
        """
        leaving = [job.task for (running, _), job in self._running.items() if running == name and job.task]
        if leaving and (await asyncio.to_thread(self._store.get, name)).state in ENDED:
            await asyncio.wait(leaving, timeout=_LEAVE_S)
        async with self._changing:
            in_use = any(running == name for running, _ in self._running)
            if in_use and (await asyncio.to_thread(self._store.get, name)).state in ENDED:
                raise AbortedError(f"{name}: its worker is about to end; try again", retry_delay_s=1.0)
            folder = job_folder(self._data_dir, name)
            await asyncio.to_thread(self._store.delete, name, partial(_remove_files, folder))
        self._notify(name)

    async def watch(self, name: str, from_seq: int = 0) -> AsyncIterator[Event]:
        """A job's events from a number on, first those that were, then each as it comes.

        Ends when the job has ended or is INTERRUPTED and all its events are told.

        Raises:
            NotFoundError: there is no such job.
            InvalidArgumentError: a negative number.
            UnavailableError: the server is stopping, and the job waits for the next one.
        """
        with self._listening(name) as changed:
            while True:
                changed.clear()
                record = await asyncio.to_thread(self._store.get, name)
                events = await asyncio.to_thread(self._store.events, name, from_seq, _EVENTS_PER_READ)
                for event in events:
                    yield event
                    from_seq = event.seq + 1
                if record.state in ENDED and from_seq > record.last_seq:
                    return
                if record.state is JobState.QUEUED and not events:
                    self._refuse_when_draining()
                if not events:
                    await _wait(changed, _LOOK_EVERY_S)

    async def wait_for_event(self, name: str, seq: int, timeout_s: float) -> JobRecord:
        """The job as soon as it has an event of this number or has ended, at the latest after `timeout_s`.

        Raises:
            NotFoundError: there is no such job.
        """
        end = asyncio.get_running_loop().time() + timeout_s
        with self._listening(name) as changed:
            while True:
                changed.clear()
                record = await asyncio.to_thread(self._store.get, name)
                left_s = end - asyncio.get_running_loop().time()
                if record.last_seq >= seq or record.state in ENDED or left_s <= 0:
                    return record
                await _wait(changed, min(left_s, _LOOK_EVERY_S))

    async def drain(self, grace_s: float) -> None:
        """Start nothing more, let running jobs write a checkpoint and become INTERRUPTED, free the data folder.

        Args:
            grace_s: workers that have not stopped by then are killed; their last checkpoint counts.
        """
        self._draining = True
        for name in list(self._listeners):
            self._notify(name)
        self._wake.set()
        if self._dispatcher is not None:
            await self._dispatcher
        running = list(self._running.values())
        for job in running:
            job.ask_to_stop("interrupt")
        tasks = [job.task for job in running if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
            for job in running:
                job.kill(SERVER_STOPPED)
            await asyncio.wait(tasks)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise UnavailableError("the server is stopping; try again later", retry_delay_s=_DRAIN_RETRY_S)

    def _resume_all(self) -> None:
        token = ""
        while True:
            page, token = self._store.list(page_token=token, states=[JobState.INTERRUPTED])
            for record in page:
                self._store.resume(record.name)
                log.info("%s is queued again", record.name)
            if not token:
                return

    async def _dispatch(self) -> None:
        """Start workers while there are jobs and room for them, until the drain."""
        while not self._draining:
            self._wake.clear()
            try:
                while not self._draining and len(self._running) < self._settings.max_running_jobs:
                    if not await self._start_next():
                        break
            except sqlite3.Error:
                log.exception("the job store cannot be used; trying again")
            await _wait(self._wake, _LOOK_EVERY_S)

    async def _start_next(self) -> bool:
        async with self._changing:
            record = await asyncio.to_thread(self._store.claim_next)
            if record is None:
                return False
            running = _Running(record)
            self._running[record.name, record.attempt] = running
        self._notify(record.name)
        running.task = asyncio.create_task(self._run(running))
        return True

    async def _run(self, running: _Running) -> None:
        name = running.record.name
        log.info("%s runs, attempt %d", name, running.record.attempt)
        try:
            reason = await self._work(running)
        except Exception:
            log.exception("the worker of %s could not be started or followed", name)
            running.kill("the worker could not be started; the server's log says why")
            reason = ""
        state = await self._close_attempt(running.record, running.end_reason or reason)
        del self._running[name, running.record.attempt]
        log.info("%s is %s", name, state.value)
        self._notify(name)
        if self._on_end is not None:
            await asyncio.to_thread(self._on_end, name)

    async def _work(self, running: _Running) -> str:
        """Start the worker and follow it to its end, which is returned in words."""
        record, settings = running.record, self._settings
        order = WorkerOrder(
            name=record.name,
            attempt=record.attempt,
            data_dir=self._data_dir,
            store_path=self._store.path.resolve(),
            threads=settings.job_threads,
            nice=settings.job_nice,
            checkpoint_interval_s=settings.checkpoint_interval_s,
            weights_roots=tuple(path.resolve() for path in settings.weights_roots),
        )
        worker = running.worker = await self._runner.start(order)
        if running.end_reason:  # the drain's patience ended meanwhile
            worker.kill()
        stopper = asyncio.create_task(self._stop_when_asked(running, worker))
        try:
            async for _ in worker.wakes():
                self._notify(record.name)
            return await worker.wait()
        finally:
            stopper.cancel()

    async def _stop_when_asked(self, running: _Running, worker: Worker) -> None:
        await running.stop_asked.wait()
        if running.stop == "interrupt":
            await worker.send("interrupt")  # the drain itself sees to the end
        else:
            await worker.send("cancel")
            await asyncio.sleep(self._kill_after_s)
            running.kill(f"cancelled; the worker did not stop within {self._kill_after_s:g} s and was killed")

    async def _close_attempt(self, record: JobRecord, reason: str) -> JobState:
        """Make sure that the job is not left RUNNING; where its worker has ended it properly nothing changes."""
        while True:
            try:
                with suppress(StaleAttemptError):
                    await asyncio.to_thread(
                        self._store.finish, record.name, record.attempt, JobState.INTERRUPTED, reason
                    )
                return (await asyncio.to_thread(self._store.get, record.name)).state
            except sqlite3.Error:
                log.exception("the end of %s cannot be written", record.name)
                if self._draining:  # the next server finds it RUNNING with nobody running it, and recovers it
                    return record.state
                await asyncio.sleep(_LOOK_EVERY_S)

    @contextmanager
    def _listening(self, name: str) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._listeners.setdefault(name, set()).add(changed)
        try:
            yield changed
        finally:
            self._listeners[name].discard(changed)
            if not self._listeners[name]:
                del self._listeners[name]

    def _notify(self, name: str) -> None:
        """Wake who watches the job, and the queue."""
        self._wake.set()
        for changed in self._listeners.get(name, ()):
            changed.set()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until the event is set, but not longer than `timeout_s`."""
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


def _remove_files(folder: Path) -> None:
    with suppress(FileNotFoundError):
        remove_folder(folder)
