from __future__ import annotations

import math
import multiprocessing
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyserve.errors import (
    AbortedError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from pyserve.jobs.database import SCHEMA_VERSION
from pyserve.jobs.events import TERMINAL, Artifact, CurvePoint, JobState, LogLine, StateChange, StepDone
from pyserve.jobs.records import JobError, JobRecord, LearningRateResult, Progress, Suggestion
from pyserve.jobs.store import JobStore, StaleAttemptError
from pyserve.spec import FindLearningRateSpec
from tests.jobs.support import RESULT, spec

MISSING = "jobs/01890000-0000-7000-8000-000000000000"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = JobStore(tmp_path / "jobs.sqlite3")
    yield opened
    opened.close()


def running(store: JobStore, what: str = "") -> JobRecord:
    store.create(spec(what))
    record = store.claim_next()
    assert record is not None
    return record


def test_a_new_job_waits_with_its_spec(store: JobStore) -> None:
    asked = spec("cats", epochs=3, learning_rate=0.02)
    record = store.create(asked)
    assert store.get(record.name) == record
    assert (record.spec, record.state, record.attempt, record.kind) == (asked, JobState.QUEUED, 0, "train")
    assert (record.start_time, record.end_time, record.result, record.error) == (None, None, None, None)
    assert uuid.UUID(record.id).version == 7
    [event] = store.events(record.name)
    assert (event.seq, event.payload) == (1, StateChange(state=JobState.QUEUED))


def test_ids_ascend_within_a_tick(store: JobStore) -> None:
    ids = [store.create(spec()).id for _ in range(200)]
    assert ids == sorted(set(ids))


def test_same_request_id_gives_the_first_job(store: JobStore) -> None:
    request_id = str(uuid.uuid4())
    first = store.create(spec(epochs=3), request_id, max_queued=1)
    assert store.create(spec(epochs=3), request_id, max_queued=1) == first
    with pytest.raises(InvalidArgumentError, match=f"request_id: got '{request_id}'") as info:
        store.create(spec(epochs=4), request_id)
    assert [v.field for v in info.value.fields] == ["request_id"]
    with pytest.raises(InvalidArgumentError, match="request_id"):
        store.create(FindLearningRateSpec(training=spec(epochs=3)), request_id)
    assert len(store.list()[0]) == 1


def test_the_queue_is_bounded(store: JobStore) -> None:
    store.create(spec(), max_queued=2)
    store.create(spec(), max_queued=2)
    with pytest.raises(ResourceExhaustedError, match="2 jobs wait already") as info:
        store.create(spec(), max_queued=2)
    assert info.value.retry_delay_s
    assert info.value.metadata == {"limit": "max_queued_jobs", "value": "2"}
    store.claim_next()
    assert store.create(spec(), max_queued=2).state is JobState.QUEUED


def test_jobs_are_claimed_in_the_order_of_creation(store: JobStore) -> None:
    names = [store.create(spec()).name for _ in range(3)]
    claimed = [store.claim_next() for _ in range(4)]
    assert [record and record.name for record in claimed] == [*names, None]
    assert claimed[0] is not None
    assert (claimed[0].attempt, claimed[0].state) == (1, JobState.RUNNING)
    assert claimed[0].start_time is not None


def test_events_have_no_gap_and_come_back_as_they_went(store: JobStore) -> None:
    job = running(store)
    payloads = [
        StepDone(step=1, total_steps=9, loss=math.inf, learning_rates=(0.1, 0.2), images_per_s=3.5),
        CurvePoint(learning_rate=1e-7, loss=-0.5, smoothed_loss=2.0),
        LogLine(message="Fäden\n🧵"),
    ]
    assert [store.append(job.name, 1, payload) for payload in payloads] == [3, 4, 5]
    events = store.events(job.name)
    assert [e.seq for e in events] == [1, 2, 3, 4, 5]
    assert [e.payload for e in events[2:]] == payloads
    assert store.events(job.name, 4, 1) == events[3:4]
    assert store.events(job.name, 6) == []
    assert store.get(job.name).last_seq == 5
    nan = StepDone(step=1, total_steps=9, loss=math.nan)
    store.append(job.name, 1, nan)
    [event] = store.events(job.name, 6)
    assert isinstance(event.payload, StepDone)
    assert math.isnan(event.payload.loss)


def test_progress_and_artifacts_join_the_job(store: JobStore) -> None:
    job = running(store)
    progress = Progress(step=3, total_steps=9, epoch=1, total_epochs=3)
    store.append(job.name, 1, LogLine(message="x"), progress)
    store.append(job.name, 1, Artifact(name="a.png", media_type="image/png", size_bytes=1))
    store.append(job.name, 1, Artifact(name="b.png", media_type="image/png", size_bytes=2))
    again = Artifact(name="a.png", media_type="image/png", size_bytes=3)
    store.append(job.name, 1, again)
    record = store.get(job.name)
    assert record.progress == progress
    assert [(a.name, a.size_bytes) for a in record.artifacts] == [("b.png", 2), ("a.png", 3)]


def test_results_and_errors_are_kept(store: JobStore) -> None:
    done = running(store)
    assert store.finish(done.name, 1, JobState.SUCCEEDED, result=RESULT).result == RESULT
    assert store.get(done.name).end_time is not None
    failed = running(store)
    error = JobError(status="INVALID_ARGUMENT", message="no")
    assert store.finish(failed.name, 1, JobState.FAILED, "no", error=error).error == error
    store.create(FindLearningRateSpec(training=spec()))
    finder = store.claim_next()
    assert finder is not None
    result = LearningRateResult(
        learning_rate=0.01,
        rule="valley",
        suggestions=(Suggestion(rule="valley", learning_rate=0.01), Suggestion(rule="steep", problem="too short")),
        curve=(CurvePoint(learning_rate=1e-7, loss=1.0, smoothed_loss=1.0),),
        diverged=True,
        dataset_digest="d",
    )
    store.finish(finder.name, 1, JobState.SUCCEEDED, result=result)
    assert store.get(finder.name).result == result
    assert store.get(finder.name).training == spec()


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_terminal_state_never_changes(store: JobStore, state: JobState) -> None:
    job = running(store)
    if state is JobState.CANCELLED:
        store.cancel(job.name)
    store.finish(job.name, 1, state)
    ended = store.get(job.name)
    for target in JobState:
        with pytest.raises(AbortedError):
            store.finish(job.name, 1, target)
    with pytest.raises(StaleAttemptError):
        store.append(job.name, 1, LogLine(message="late"))
    with pytest.raises(FailedPreconditionError, match=f"is {state.value}"):
        store.cancel(job.name)
    with pytest.raises(FailedPreconditionError, match="only an INTERRUPTED job"):
        store.resume(job.name)
    assert store.recover("stopped") == []
    assert store.claim_next() is None
    assert store.get(job.name) == ended


def test_a_stale_worker_is_refused(store: JobStore) -> None:
    job = running(store)
    store.recover("the server stopped")
    with pytest.raises(StaleAttemptError, match="INTERRUPTED in attempt 1"):
        store.append(job.name, 1, LogLine(message="late"))
    store.resume(job.name)
    with pytest.raises(StaleAttemptError):
        store.finish(job.name, 1, JobState.SUCCEEDED, result=RESULT)
    second = store.claim_next()
    assert second is not None
    assert (second.attempt, second.start_time) == (2, job.start_time)
    with pytest.raises(StaleAttemptError, match="worker of attempt 1 may not write"):
        store.append(job.name, 1, LogLine(message="late"))
    store.append(job.name, 2, LogLine(message="mine"))
    events = store.events(job.name)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    kept = [e.payload.state for e in events if isinstance(e.payload, StateChange)]
    assert [s.value for s in kept] == ["QUEUED", "RUNNING", "INTERRUPTED", "QUEUED", "RUNNING"]


def test_cancel(store: JobStore) -> None:
    queued = store.create(spec())
    assert store.cancel(queued.name).state is JobState.CANCELLED
    job = running(store)
    assert store.cancel(job.name).state is JobState.CANCELLING
    assert store.cancel(job.name).state is JobState.CANCELLING
    assert len(store.events(job.name)) == 3
    assert store.finish(job.name, 1, JobState.INTERRUPTED, "killed").state is JobState.CANCELLED
    interrupted = running(store)
    store.finish(interrupted.name, 1, JobState.INTERRUPTED)
    assert store.cancel(interrupted.name).state is JobState.CANCELLED


def test_work_that_was_done_before_the_cancelling_stays_done(store: JobStore) -> None:
    job = running(store)
    store.cancel(job.name)
    assert store.finish(job.name, 1, JobState.SUCCEEDED, result=RESULT).state is JobState.SUCCEEDED


def test_recovery_leaves_nothing_running(store: JobStore) -> None:
    first, second = running(store), running(store)
    waiting = store.create(spec())
    store.cancel(second.name)
    recovered = store.recover("the server stopped")
    assert {r.name: r.state for r in recovered} == {
        first.name: JobState.INTERRUPTED,
        second.name: JobState.CANCELLED,
    }
    assert store.get(first.name).reason == "the server stopped"
    assert store.get(waiting.name).state is JobState.QUEUED


def test_pages_newest_first(store: JobStore) -> None:
    names = [store.create(spec()).name for _ in range(5)]
    store.cancel(names[2])
    seen, token = [], ""
    while True:
        page, token = store.list(2, token)
        seen += [record.name for record in page]
        store.create(spec())  # what comes in between does not move the pages
        if not token:
            break
    assert seen == names[::-1]
    assert [r.name for r in store.list(states=[JobState.CANCELLED])[0]] == [names[2]]
    page, token = store.list(1, states=[JobState.QUEUED])
    assert store.list(1, token, [JobState.QUEUED])[0] != page
    for wrong in (lambda: store.list(1, token), lambda: store.list(1, "nonsense"), lambda: store.list(1, "e30=")):
        with pytest.raises(InvalidArgumentError, match="page_token"):
            wrong()
    with pytest.raises(InvalidArgumentError, match="page_size: got -1"):
        store.list(-1)


def test_names_that_are_none(store: JobStore) -> None:
    with pytest.raises(NotFoundError, match="there is no job yet"):
        store.get(MISSING)
    job = store.create(spec())
    with pytest.raises(NotFoundError, match=job.name):
        store.events(MISSING)
    for name in ("", "jobs/", "jobs/1", "datasets/pets", f"{job.name}/x", f"{job.name}\n"):
        with pytest.raises(InvalidArgumentError, match="name: got"):
            store.get(name)
    with pytest.raises(InvalidArgumentError, match="from_seq: got -1"):
        store.events(job.name, -1)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    JobStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(FailedPreconditionError, match=f"schema version {SCHEMA_VERSION + 1}"):
        JobStore(path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(DataLossError, match="sqlite3 is damaged"):
        JobStore(path)
    with pytest.raises(FailedPreconditionError, match="cannot be opened"):
        JobStore(tmp_path / "missing" / "jobs.sqlite3")


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    first = JobStore(path)
    record = first.create(spec())
    first.close()
    second = JobStore(path)
    assert second.get(record.name) == record
    second.close()


def _write_lines(path: Path, name: str, count: int) -> None:
    store = JobStore(path)
    for i in range(count):
        store.append(name, 1, LogLine(message=str(i)))
    store.close()


def test_processes_write_at_once_without_a_gap(store: JobStore) -> None:
    job = running(store)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_lines, args=(store.path, job.name, 100)) for _ in range(2)]
    for writer in writers:
        writer.start()
    _write_lines(store.path, job.name, 100)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    events = store.events(job.name)
    assert [e.seq for e in events] == list(range(1, 303))


def test_delete_keeps_a_finder_that_is_needed(store: JobStore) -> None:
    """Until the training that takes its rate has ended for good; an INTERRUPTED one may be resumed."""
    finder = store.create(FindLearningRateSpec(training=spec()))
    store.claim_next()
    store.finish(finder.name, 1, JobState.FAILED)
    training = store.create(spec(lr_from=finder.name))
    removed: list[str] = []
    for step in (lambda: None, store.claim_next, lambda: store.finish(training.name, 1, JobState.INTERRUPTED)):
        step()
        with pytest.raises(FailedPreconditionError, match=f"{training.name} takes its learning rate from it"):
            store.delete(finder.name, lambda: removed.append("finder"))
    assert removed == []
    store.cancel(training.name)
    store.delete(finder.name, lambda: removed.append("finder"))
    assert removed == ["finder"]
    with pytest.raises(NotFoundError):
        store.events(finder.name)
    assert [event.seq for event in store.events(training.name)] == [1, 2, 3, 4]
