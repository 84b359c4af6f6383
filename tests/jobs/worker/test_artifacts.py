from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pyserve.insight.figures import FigureFile
from pyserve.jobs.events import SpokenWarning
from pyserve.jobs.paths import artifacts_folder
from pyserve.jobs.runner import WorkerOrder
from pyserve.jobs.store import JobStore, StaleAttemptError
from pyserve.jobs.worker.artifacts import keep_figure
from pyserve.jobs.worker.report import JobReport
from tests.jobs.support import spec


def begun(tmp_path: Path) -> tuple[JobStore, WorkerOrder, JobReport]:
    store = JobStore(tmp_path / "jobs.sqlite3")
    name = store.create(spec()).name
    store.claim_next()
    order = WorkerOrder(
        name=name, attempt=1, data_dir=tmp_path, store_path=store.path, threads=1, checkpoint_interval_s=1
    )
    return store, order, JobReport(store, order, lambda: None)


def test_figures_become_files_of_the_job(tmp_path: Path) -> None:
    store, order, report = begun(tmp_path)
    files = [FigureFile("a.png", "image/png", b"123"), FigureFile("a.svg", "image/svg+xml", b"12")]
    keep_figure("test", lambda: files, order, report)
    record = store.get(order.name)
    assert [(a.name, a.media_type, a.size_bytes) for a in record.artifacts] == [
        ("a.png", "image/png", 3),
        ("a.svg", "image/svg+xml", 2),
    ]
    folder = artifacts_folder(tmp_path, order.name)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"a.png": b"123", "a.svg": b"12"}
    store.close()


def test_a_figure_that_cannot_be_drawn_fails_nothing(tmp_path: Path) -> None:
    store, order, report = begun(tmp_path)

    def draw() -> Sequence[FigureFile]:
        raise ZeroDivisionError

    keep_figure("curve", draw, order, report)
    told = store.events(order.name)[-1].payload
    assert told == SpokenWarning(
        code="figure_failed", message="the figure of the curve was not made (ZeroDivisionError)"
    )
    store.recover("gone")
    with pytest.raises(StaleAttemptError):
        keep_figure("curve", lambda: [FigureFile("a.png", "image/png", b"1")], order, report)
    store.close()
