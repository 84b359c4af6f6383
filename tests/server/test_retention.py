"""A server deletes what its settings say need not be kept, and nothing that is in use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyserve.config import Settings
from pyserve.jobs.paths import checkpoints_folder, job_folder
from pyserve.v1 import jobs_pb2, models_pb2
from tests.server.conftest import ServerThread
from tests.server.support import eventually

KEEP = {"keep_jobs": 1, "keep_models": 1, "keep_checkpoints": 0}


@pytest.fixture
def data_dir(tmp_path: Path, archive: bytes) -> Path:
    """Three versions of a model, the first of them the champion, and an interrupted training from the second."""
    server = ServerThread(settings(tmp_path))
    try:
        server.stubs.upload(archive, "colours")
        for _ in range(3):
            job = server.stubs.wait(server.stubs.train(epochs=1, model_id="colours"))
            assert job.state == jobs_pb2.SUCCEEDED, job.reason
        alias = models_pb2.SetAliasRequest(alias="models/colours@champion", version="models/colours/versions/1")
        server.stubs.models.SetAlias(alias, timeout=20)
        long = server.stubs.train(epochs=10_000, weights="models/colours/versions/2", model_id="other")
        server.stubs.wait_for_step(long, 5)
    finally:
        server.stop()  # interrupts it
    return tmp_path


def settings(folder: Path, **fields: int) -> Settings:
    values = {"port": 0, "job_threads": 1, "predict_threads": 1, "job_nice": 0, "checkpoint_interval_s": 0.2}
    return Settings(data_dir=folder, **(values | {"keep_checkpoints": None} | fields))


def versions(server: ServerThread) -> set[int]:
    models = server.stubs.models.List(models_pb2.ListModelsRequest(), timeout=20).models
    return {int(model.name.rpartition("/")[2]) for model in models if model.name.startswith("models/colours/")}


def jobs(server: ServerThread) -> list[jobs_pb2.Job]:
    return list(server.stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20).jobs)


@pytest.fixture
def server(data_dir: Path) -> Iterator[ServerThread]:
    thread = ServerThread(settings(data_dir, **KEEP))
    yield thread
    thread.stop()


def test_what_is_in_use_stays_and_the_rest_goes(server: ServerThread, data_dir: Path) -> None:
    # of the versions: 1 is the champion, 2 is what a resumable job begins with, 3 is the newest
    eventually(
        lambda: not list((data_dir / "jobs").glob(".new-*")) and checkpoints(data_dir) == {interrupted(server)}
    )
    assert versions(server) == {1, 2, 3}
    assert {job.state for job in jobs(server)} == {jobs_pb2.INTERRUPTED, jobs_pb2.SUCCEEDED}
    [long] = [job for job in jobs(server) if job.state == jobs_pb2.INTERRUPTED]
    server.stubs.jobs.Resume(jobs_pb2.ResumeJobRequest(name=long.name), timeout=20)
    server.stubs.wait_for_step(long, 10)
    server.stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=long.name), timeout=20)
    assert server.stubs.wait(long).state == jobs_pb2.CANCELLED


def test_what_is_no_longer_in_use_goes(data_dir: Path) -> None:
    before = ServerThread(settings(data_dir))
    remove = models_pb2.SetAliasRequest(alias="models/colours@champion", version="")
    before.stubs.models.SetAlias(remove, timeout=20)
    best = max(
        before.stubs.models.List(models_pb2.ListModelsRequest(), timeout=20).models,
        key=lambda model: (model.metrics["accuracy"], -model.metrics["loss"]),
    )
    [long] = [job for job in jobs(before) if job.state == jobs_pb2.INTERRUPTED]
    before.stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=long.name), timeout=20)
    before.stop()
    expected = {3, int(best.name.rpartition("/")[2])}
    after = ServerThread(settings(data_dir, **KEEP))
    try:
        eventually(lambda: versions(after) == expected)
        eventually(lambda: checkpoints(data_dir) == set())
        left = {job.name for job in jobs(after)}
        assert long.name in left  # the newest
        assert len(left) <= 2  # and the best training
        assert {path.name for path in (data_dir / "jobs").iterdir()} == {
            name.removeprefix("jobs/") for name in left
        }
        assert all(job_folder(data_dir, name).is_dir() for name in left)
    finally:
        after.stop()


def checkpoints(data_dir: Path) -> set[str]:
    """The jobs that have checkpoints."""
    names = [f"jobs/{path.name}" for path in (data_dir / "jobs").iterdir() if not path.name.startswith(".")]
    return {name for name in names if checkpoints_folder(data_dir, name).is_dir()}


def interrupted(server: ServerThread) -> str:
    return next(job.name for job in jobs(server) if job.state == jobs_pb2.INTERRUPTED)
