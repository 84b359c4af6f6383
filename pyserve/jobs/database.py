"""The SQLite file behind the job store: opening, schema version, transactions.

Write-ahead logging lets the server and its workers use it at once. `synchronous=NORMAL` keeps the file whole in
any case and every commit across `kill -9`; only a power cut may lose the last ones.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyserve.errors import DataLossError, FailedPreconditionError

SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 30.0
# `number` counts jobs in the order of their creation, whatever the clock did in between.
_SCHEMA = (
    """CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        spec TEXT NOT NULL,
        request_id TEXT UNIQUE,
        state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        attempt INTEGER NOT NULL DEFAULT 0,
        create_time REAL NOT NULL,
        start_time REAL,
        end_time REAL,
        progress TEXT NOT NULL DEFAULT '{}',
        result TEXT,
        error TEXT,
        artifacts TEXT NOT NULL DEFAULT '[]',
        last_seq INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX jobs_by_state ON jobs (state, number)",
    """CREATE TABLE events (
        job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
        seq INTEGER NOT NULL,
        time REAL NOT NULL,
        payload TEXT NOT NULL,
        PRIMARY KEY (job, seq)
    ) WITHOUT ROWID""",
)


class Database:
    """One connection, for use from any thread, one at a time.

    Args:
        path: the file, made if missing.
        check: look at every page of it first, so that damage is found now and not by the call that meets it.

    Raises:
        DataLossError: the file is not a database, or damaged.
        FailedPreconditionError: a later pyserve wrote it, or it cannot be opened.
    """

    def __init__(self, path: Path, *, check: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise FailedPreconditionError(f"{path.name} cannot be opened: {error}") from error
        self._connection.row_factory = sqlite3.Row
        with ExitStack() as on_failure:
            on_failure.callback(self._connection.close)
            try:
                if check:
                    self._check()
                self._prepare()
            except sqlite3.OperationalError as error:
                raise FailedPreconditionError(f"{path.name} cannot be used: {error}") from error
            except sqlite3.DatabaseError as error:
                raise _damaged(path, str(error)) from error
            on_failure.pop_all()

    def close(self) -> None:
        """Close the connection; nothing works afterwards."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One moment of the database, for any number of reads."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; no other process writes meanwhile."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite rolls back by itself where the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def _check(self) -> None:
        problems = [str(row[0]) for row in self._connection.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise _damaged(self._path, "; ".join(problem.splitlines()[-1] for problem in problems))

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        with self.write() as connection:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA_VERSION:
                raise FailedPreconditionError(
                    f"{self._path.name} has schema version {version}, this pyserve reads up to {SCHEMA_VERSION}: "
                    "a later pyserve wrote it; use that one or another data_dir"
                )
            if version == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _damaged(path: Path, problem: str) -> DataLossError:
    return DataLossError(
        f"{path.name} is damaged: {problem}; it was left as it is: put a copy in its place, or move it and "
        f"{path.name}-wal away to begin without the jobs that were (datasets and models stay)"
    )
