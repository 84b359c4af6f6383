"""Where a job's files lie, and how sentences for users stay free of the server's folders."""

from __future__ import annotations

import re
from pathlib import Path

from pyserve.data import names
from pyserve.jobs.records import job_id

STORE_FILE = "jobs.sqlite3"
CACHE_FOLDER = names.CACHE_FOLDER
CHECKPOINTS_FOLDER = "checkpoints"
WORKER_LOG = "worker.log"
# a slash that begins a path, the folders, and the last part, which stays
_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/-])(?:/[^\s/'\":,;()]+)*/(?=[^\s/'\":,;()])")


def job_folder(data_dir: Path, name: str) -> Path:
    """The folder of `jobs/{id}`: `checkpoints/`, `artifacts/` and the worker's log."""
    return data_dir / "jobs" / job_id(name)


def checkpoints_folder(data_dir: Path, name: str) -> Path:
    """The folder of what `jobs/{id}` can go on from."""
    return job_folder(data_dir, name) / CHECKPOINTS_FOLDER


def artifacts_folder(data_dir: Path, name: str) -> Path:
    """The folder of the files that `jobs/{id}` made."""
    return job_folder(data_dir, name) / "artifacts"


def strike_folders(text: str) -> str:
    """The text with every absolute path cut down to its last part."""
    return _ABSOLUTE_PATH.sub("", text)
