"""Jobs and their event logs, and the rules of who may change what.

- A terminal state never changes.
- A worker writes under the number of its attempt; one whose attempt is no longer current, or whose job no longer
  runs, is refused (fencing), so that a worker thought dead cannot spoil its successor's log.
- Sequence numbers count from 1 without a gap: number and event are one transaction.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from pyserve import paging
from pyserve.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from pyserve.jobs.database import Database
from pyserve.jobs.events import (
    ACTIVE,
    ENDED,
    TERMINAL,
    Artifact,
    Event,
    JobState,
    Payload,
    StateChange,
    parse_payload,
)
from pyserve.jobs.records import (
    RESULTS,
    SPECS,
    JobError,
    JobRecord,
    Progress,
    Result,
    TrainResult,
    job_id,
    kind_of,
    new_job_id,
)
from pyserve.spec import JobSpec

_ALLOWED = {
    JobState.QUEUED: {JobState.RUNNING, JobState.CANCELLED},
    JobState.RUNNING: {JobState.CANCELLING, JobState.INTERRUPTED, JobState.SUCCEEDED, JobState.FAILED},
    # what was finished before the worker heard of the cancelling stays finished
    JobState.CANCELLING: {JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED},
    JobState.INTERRUPTED: {JobState.QUEUED, JobState.CANCELLED},
}
_ARTIFACTS = TypeAdapter(tuple[Artifact, ...])
_NAMED_IN_ERRORS = 10
_QUEUE_RETRY_S = 10.0


class StaleAttemptError(AbortedError):
    """A worker wanted to write whose attempt is no longer the one that runs."""


class JobStore:
    """The jobs of one data folder. Usable from any thread, and by server and workers at once.

    Args:
        path: the SQLite file, made if missing.
        check: look for damage everywhere in it first; for the server, once, when it starts.

    Raises:
        DataLossError: the file is damaged.
        FailedPreconditionError: a later pyserve wrote it, or it cannot be opened.
    """

    def __init__(self, path: Path, *, check: bool = False) -> None:
        self.path = path
        self._database = Database(path, check=check)

    def close(self) -> None:
        """Close the file; nothing works afterwards."""
        self._database.close()

    def create(self, spec: JobSpec, request_id: str = "", *, max_queued: int | None = None) -> JobRecord:
        """Queue a job.

        Args:
            request_id: chosen by the caller; the same one with the same spec gives the first job. "" for none.
            max_queued: most jobs that may wait.

        Raises:
            InvalidArgumentError: `request_id` was used for another request.
            ResourceExhaustedError: `max_queued` jobs wait already.
        """
        with self._database.write() as db:
            known = db.execute("SELECT * FROM jobs WHERE request_id = ?", (request_id,)).fetchone()
            if known is not None:
                record = _record(known)
                if record.spec != spec:
                    raise InvalidArgumentError.field(
                        "request_id", request_id, "a new UUID: this one was used for another request"
                    )
                return record
            _check_queue(db, max_queued)
            cursor = db.execute(
                "INSERT INTO jobs (id, kind, spec, request_id, state, create_time) VALUES (?, ?, ?, ?, '', ?)",
                (new_job_id(), kind_of(spec), spec.model_dump_json(), request_id or None, time.time()),
            )
            row = db.execute("SELECT * FROM jobs WHERE number = ?", (cursor.lastrowid,)).fetchone()
            return _enter(db, row, JobState.QUEUED)

    def get(self, name: str) -> JobRecord:
        """One job.

        Raises:
            InvalidArgumentError: `name` is not of the form `jobs/{id}`.
            NotFoundError: names what exists.
        """
        with self._database.read() as db:
            return _record(_row(db, name))

    def list(
        self, page_size: int = 0, page_token: str = "", states: Sequence[JobState] = ()
    ) -> tuple[Sequence[JobRecord], str]:
        """Jobs, newest first, in pages.

        Args:
            page_size: at most this many; 0 means 100, more than 1000 means 1000.
            page_token: the second result of the page before; "" for the first.
            states: only jobs in one of these; none means all.

        Returns:
            The page, and the token of the next one, "" on the last page.

        Raises:
            InvalidArgumentError: a negative size, or a token that no page with these states gave.
        """
        size = paging.page_size(page_size)
        wanted = json.dumps(sorted({state.value for state in states} or {state.value for state in JobState}))
        below = _decode_token(page_token, wanted) if page_token else 2**63 - 1
        query = (
            "SELECT * FROM jobs WHERE number < ? AND state IN (SELECT value FROM json_each(?)) "
            "ORDER BY number DESC LIMIT ?"
        )
        with self._database.read() as db:
            rows = db.execute(query, (below, wanted, size + 1)).fetchall()
        token = paging.encode_token([rows[size - 1]["number"], wanted]) if len(rows) > size else ""
        return [_record(row) for row in rows[:size]], token

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        with self._database.read() as db:
            rows = db.execute("SELECT state, COUNT(*) AS count FROM jobs GROUP BY state").fetchall()
        found = {JobState(row["state"]): int(row["count"]) for row in rows}
        return {state: found.get(state, 0) for state in JobState}

    def users_of(self, resources: Sequence[str]) -> Sequence[str]:
        """Names of the jobs that have not ended for good and read one of these resources, newest first."""
        names, token = [], ""
        while True:
            page, token = self.list(paging.MOST, token, [state for state in JobState if state not in TERMINAL])
            names += [r.name for r in page if {r.training.dataset, r.training.weights} & set(resources)]
            if not token:
                return names

    def log(self, name: str) -> Iterator[Event]:
        """All of a job's events, from the first.

        Raises:
            InvalidArgumentError, NotFoundError: as `events`.
        """
        seq = 1
        while page := self.events(name, seq):
            yield from page
            seq = page[-1].seq + 1

    def events(self, name: str, from_seq: int = 1, limit: int = 1000) -> Sequence[Event]:
        """A job's events from a sequence number on (0: from the first), at most `limit`.

        Raises:
            InvalidArgumentError: a negative number, or `name` is not of the form `jobs/{id}`.
            NotFoundError: names what exists.
        """
        if from_seq < 0:
            raise InvalidArgumentError.field("from_seq", from_seq, "≥ 0")
        query = "SELECT seq, time, payload FROM events WHERE job = ? AND seq >= ? ORDER BY seq LIMIT ?"
        with self._database.read() as db:
            rows = db.execute(query, (_row(db, name)["number"], from_seq, limit)).fetchall()
        return [Event(row["seq"], row["time"], parse_payload(row["payload"])) for row in rows]

    def append(self, name: str, attempt: int, payload: Payload, progress: Progress | None = None) -> int:
        """Add an event for the worker of an attempt; an `Artifact` also joins the job's files.

        Args:
            progress: how far the job is now, if that changed.

        Returns:
            The event's sequence number.

        Raises:
            StaleAttemptError: the attempt is no longer current, or the job no longer runs.
        """
        with self._database.write() as db:
            row = _fenced_row(db, name, attempt)
            if progress is not None:
                db.execute("UPDATE jobs SET progress = ? WHERE number = ?", (_json(progress), row["number"]))
            if isinstance(payload, Artifact):
                others = [a for a in _ARTIFACTS.validate_json(row["artifacts"]) if a.name != payload.name]
                text = _ARTIFACTS.dump_json((*others, payload)).decode()
                db.execute("UPDATE jobs SET artifacts = ? WHERE number = ?", (text, row["number"]))
            return _append(db, row, payload)

    def finish(
        self,
        name: str,
        attempt: int,
        state: JobState,
        reason: str = "",
        *,
        result: Result | None = None,
        error: JobError | None = None,
    ) -> JobRecord:
        """End an attempt: SUCCEEDED, FAILED, CANCELLED or INTERRUPTED (of a job that is CANCELLING: CANCELLED).

        Raises:
            StaleAttemptError: the attempt is no longer current, or the job no longer runs.
        """
        with self._database.write() as db:
            row = _fenced_row(db, name, attempt)
            if row["state"] == JobState.CANCELLING.value and state is JobState.INTERRUPTED:
                state = JobState.CANCELLED
            db.execute(
                "UPDATE jobs SET result = ?, error = ? WHERE number = ?",
                (_json(result) if result else None, _json(error) if error else None, row["number"]),
            )
            made_model = state is JobState.SUCCEEDED and isinstance(result, TrainResult)
            return _enter(db, row, state, reason, report=f"{name}/report" if made_model else "")

    def claim_next(self) -> JobRecord | None:
        """Make the oldest QUEUED job RUNNING under its next attempt; None where none waits."""
        with self._database.write() as db:
            row = db.execute("SELECT * FROM jobs WHERE state = 'QUEUED' ORDER BY number LIMIT 1").fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET attempt = attempt + 1, start_time = coalesce(start_time, ?) WHERE number = ?",
                (time.time(), row["number"]),
            )
            return _enter(db, row, JobState.RUNNING)

    def cancel(self, name: str) -> JobRecord:
        """QUEUED and INTERRUPTED become CANCELLED, RUNNING becomes CANCELLING; CANCELLING stays.

        Raises:
            FailedPreconditionError: the job has ended.
        """
        with self._database.write() as db:
            row = _row(db, name)
            state = JobState(row["state"])
            if state is JobState.CANCELLING:
                return _record(row)
            if state in TERMINAL:
                raise FailedPreconditionError(f"{name} is {state.value}: a job that has ended stays as it is")
            to_state = JobState.CANCELLING if state is JobState.RUNNING else JobState.CANCELLED
            return _enter(db, row, to_state, "cancelled on request")

    def resume(self, name: str, *, max_queued: int | None = None) -> JobRecord:
        """Queue an INTERRUPTED job again.

        Raises:
            FailedPreconditionError: the job is in another state.
            ResourceExhaustedError: `max_queued` jobs wait already.
        """
        with self._database.write() as db:
            row = _row(db, name)
            if row["state"] != JobState.INTERRUPTED.value:
                raise FailedPreconditionError(f"{name} is {row['state']}: only an INTERRUPTED job can be resumed")
            _check_queue(db, max_queued)
            return _enter(db, row, JobState.QUEUED)

    def delete(self, name: str, remove_files: Callable[[], None]) -> None:
        """Forget a job that nobody works on, and its log.

        Args:
            remove_files: called when nothing speaks against it, before the job is forgotten: a crash in between
                leaves a job without files, which can be deleted again, and never files without a job.

        Raises:
            FailedPreconditionError: it waits or runs, or a training that has not ended takes its rate from it.
        """
        with self._database.write() as db:
            row = _row(db, name)
            if JobState(row["state"]) not in ENDED:
                raise FailedPreconditionError(f"{name} is {row['state']}: cancel it first")
            unfinished = [state.value for state in JobState if state not in TERMINAL]
            users = db.execute(
                "SELECT id FROM jobs WHERE state IN (SELECT value FROM json_each(?)) "
                "AND json_extract(spec, '$.lr_from') = ? LIMIT 5",
                (json.dumps(unfinished), name),
            ).fetchall()
            if users:
                names = ", ".join(f"jobs/{user['id']}" for user in users)
                raise FailedPreconditionError(
                    f"{name} is in use: {names} takes its learning rate from it; wait until that has ended, or "
                    "cancel it"
                )
            remove_files()
            db.execute("DELETE FROM jobs WHERE number = ?", (row["number"],))

    def recover(self, reason: str) -> Sequence[JobRecord]:
        """End what nobody runs any more: RUNNING becomes INTERRUPTED, CANCELLING becomes CANCELLED."""
        with self._database.write() as db:
            rows = db.execute("SELECT * FROM jobs WHERE state IN ('RUNNING', 'CANCELLING')").fetchall()
            running = JobState.RUNNING.value
            return [
                _enter(db, row, JobState.INTERRUPTED if row["state"] == running else JobState.CANCELLED, reason)
                for row in rows
            ]


def _row(db: sqlite3.Connection, name: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id(name),)).fetchone()
    if row is not None:
        return row
    rows = db.execute("SELECT id FROM jobs ORDER BY number DESC LIMIT ?", (_NAMED_IN_ERRORS,)).fetchall()
    existing = ", ".join(f"jobs/{other['id']}" for other in rows)
    raise NotFoundError(
        f"{name} does not exist; " + (f"newest first: {existing}" if rows else "there is no job yet")
    )


def _fenced_row(db: sqlite3.Connection, name: str, attempt: int) -> sqlite3.Row:
    row = _row(db, name)
    if row["attempt"] != attempt or JobState(row["state"]) not in ACTIVE:
        raise StaleAttemptError(
            f"{name} is {row['state']} in attempt {row['attempt']}: the worker of attempt {attempt} may not write"
        )
    return row


def _enter(
    db: sqlite3.Connection, row: sqlite3.Row, state: JobState, reason: str = "", *, report: str = ""
) -> JobRecord:
    """Change the state, and say so in the log."""
    if row["state"] and state not in _ALLOWED.get(JobState(row["state"]), ()):
        raise AbortedError(f"jobs/{row['id']} is {row['state']} and cannot become {state.value}")
    end_time = time.time() if state in TERMINAL else None
    db.execute(
        "UPDATE jobs SET state = ?, reason = ?, end_time = ? WHERE number = ?",
        (state.value, reason, end_time, row["number"]),
    )
    _append(db, row, StateChange(state=state, reason=reason, report=report))
    return _record(db.execute("SELECT * FROM jobs WHERE number = ?", (row["number"],)).fetchone())


def _append(db: sqlite3.Connection, row: sqlite3.Row, payload: Payload) -> int:
    seq = int(row["last_seq"]) + 1
    db.execute(
        "INSERT INTO events (job, seq, time, payload) VALUES (?, ?, ?, ?)",
        (row["number"], seq, time.time(), _json(payload)),
    )
    db.execute("UPDATE jobs SET last_seq = ? WHERE number = ?", (seq, row["number"]))
    return seq


def _check_queue(db: sqlite3.Connection, max_queued: int | None) -> None:
    waiting = int(db.execute("SELECT count(*) FROM jobs WHERE state = 'QUEUED'").fetchone()[0])
    if max_queued is not None and waiting >= max_queued:
        raise ResourceExhaustedError(
            f"{waiting} jobs wait already, the limit (max_queued_jobs) is {max_queued}; try again later",
            retry_delay_s=_QUEUE_RETRY_S,
            metadata={"limit": "max_queued_jobs", "value": str(max_queued)},
        )


def _record(row: sqlite3.Row) -> JobRecord:
    result, error = row["result"], row["error"]
    return JobRecord(
        id=row["id"],
        spec=SPECS[row["kind"]].model_validate_json(row["spec"]),
        state=JobState(row["state"]),
        reason=row["reason"],
        attempt=row["attempt"],
        create_time=row["create_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        progress=Progress.model_validate_json(row["progress"]),
        result=RESULTS[row["kind"]].model_validate_json(result) if result else None,
        error=JobError.model_validate_json(error) if error else None,
        artifacts=_ARTIFACTS.validate_json(row["artifacts"]),
        last_seq=row["last_seq"],
    )


def _json(model: Payload | Progress | Result | JobError) -> str:
    return model.model_dump_json()


def _decode_token(token: str, states: str) -> int:
    number, of_states = paging.decode_token(token, (int, str))
    if of_states != states:
        raise paging.bad_token(token)
    return int(number)
