"""What jobs have in common, whatever they do."""

from __future__ import annotations

from pyserve.v1 import jobs_pb2

# No worker is at it any more; an INTERRUPTED one can be resumed.
ENDED = (jobs_pb2.SUCCEEDED, jobs_pb2.FAILED, jobs_pb2.CANCELLED, jobs_pb2.INTERRUPTED)


def is_finder(job: jobs_pb2.Job) -> bool:
    """Whether it looks for a learning rate; the others train."""
    return job.HasField("find_learning_rate")


def training_of(job: jobs_pb2.Job) -> jobs_pb2.TrainSpec:
    """The training that a job does, or for which it looks for a learning rate."""
    return job.find_learning_rate.training if is_finder(job) else job.train
