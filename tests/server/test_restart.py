"""Servers and workers that are killed: nothing is lost, nothing is RUNNING with nobody running it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.v1 import jobs_pb2
from tests.server.support import ServerProcess, children, eventually, failure, pictures, zipped

# Enough steps that a kill comes in the middle, few enough that the test stays short.
FIELDS = {"epochs": 15, "batch_size": 4, "seed": 3}
STEP = 30


def weights(server: ServerProcess, job: jobs_pb2.Job) -> bytes:
    assert job.state == jobs_pb2.SUCCEEDED, f"{job.reason}\n{server.log()}"
    _, model_id, _, version = job.train_result.model.split("/")
    return (server.data_dir / "models" / model_id / version / "model.safetensors").read_bytes()


def resume(server: ServerProcess, job: jobs_pb2.Job) -> jobs_pb2.Job:
    return server.stubs.jobs.Resume(jobs_pb2.ResumeJobRequest(name=job.name), timeout=20)


def get(server: ServerProcess, job: jobs_pb2.Job) -> jobs_pb2.Job:
    return server.stubs.jobs.Get(jobs_pb2.GetJobRequest(name=job.name), timeout=20)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the training that the tests disturb, where nothing disturbs it."""
    server = ServerProcess(tmp_path_factory.mktemp("undisturbed") / "data")
    server.stubs.upload(zipped(pictures()), "colours")
    result = weights(server, server.stubs.wait(server.stubs.train(**FIELDS)))
    assert server.terminate() == 0
    return result


def begin(server: ServerProcess) -> jobs_pb2.Job:
    """A training that has come to its middle."""
    server.stubs.upload(zipped(pictures()), "colours")
    job = server.stubs.train(**FIELDS)
    server.stubs.wait_for_step(job, STEP)
    return job


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_killed_server(process: ServerProcess, undisturbed: bytes) -> None:
    job = begin(process)
    [worker] = children(process.process.pid)
    process.kill()
    eventually(lambda: not alive(worker))
    process.start()
    interrupted = get(process, job)
    assert interrupted.state == jobs_pb2.INTERRUPTED
    assert interrupted.reason == "the server stopped while the job was running"
    assert resume(process, job).state == jobs_pb2.QUEUED
    assert weights(process, process.stubs.wait(job)) == undisturbed
    events = process.stubs.watch(job)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))


def test_killed_worker(process: ServerProcess, undisturbed: bytes) -> None:
    job = begin(process)
    [worker] = children(process.process.pid)
    os.kill(worker, signal.SIGKILL)
    interrupted = process.stubs.wait(job)
    assert interrupted.state == jobs_pb2.INTERRUPTED
    assert "SIGKILL" in interrupted.reason
    resume(process, job)
    done = process.stubs.wait(job)
    assert weights(process, done) == undisturbed
    assert done.attempt == 2


def test_drained_server(process: ServerProcess, undisturbed: bytes) -> None:
    job = begin(process)
    waiting = process.stubs.train(**FIELDS)
    queued = [process.stubs.train(**FIELDS) for _ in range(2)][-1]
    stream = process.stubs.jobs.Watch(jobs_pb2.WatchRequest(name=queued.name), timeout=60)
    next(stream)
    health = health_pb2_grpc.HealthStub(process.stubs.channel)
    statuses = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
    process.process.send_signal(signal.SIGTERM)
    assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert "stopping" in failure(lambda: list(stream))[1]  # a job that waits for the next server
    assert process.terminate() == 0, process.log()
    process.start()
    assert get(process, queued).state in (jobs_pb2.QUEUED, jobs_pb2.RUNNING)
    for name in (job, waiting):
        assert get(process, name).state == jobs_pb2.INTERRUPTED
        resume(process, name)
    for name in (job, waiting, queued):
        assert weights(process, process.stubs.wait(name)) == undisturbed


def test_second_server_on_the_same_folder(process: ServerProcess) -> None:
    with pytest.raises(AssertionError, match=rf"in use by another server \(process {process.process.pid}\)"):
        ServerProcess(process.data_dir)
    process.stubs.upload(zipped(pictures()), "colours")  # the first goes on
