"""Servers and workers that are killed: nothing is lost, nothing is RUNNING with nobody running it."""

from __future__ import annotations

from pyserve.v1 import jobs_pb2
from tests.server.support import ServerProcess

# Enough steps that a kill comes in the middle, few enough that the test stays short.
FIELDS = {"epochs": 40, "batch_size": 4, "seed": 3}
STEP = 30


def weights(server: ServerProcess, job: jobs_pb2.Job) -> bytes:
    assert job.state == jobs_pb2.SUCCEEDED, f"{job.reason}\n{server.log()}"
    _, model_id, _, version = job.train_result.model.split("/")
    return (server.data_dir / "models" / model_id / version / "model.safetensors").read_bytes()


def resume(server: ServerProcess, job: jobs_pb2.Job) -> jobs_pb2.Job:
    return server.stubs.jobs.Resume(jobs_pb2.ResumeJobRequest(name=job.name), timeout=20)


def get(server: ServerProcess, job: jobs_pb2.Job) -> jobs_pb2.Job:
    return server.stubs.jobs.Get(jobs_pb2.GetJobRequest(name=job.name), timeout=20)
