"""Taking the learning rate that a range test has found (`TrainSpec.lr_from`)."""

from __future__ import annotations

from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.jobs.events import JobState
from pyserve.jobs.records import LearningRateResult
from pyserve.jobs.store import JobStore
from pyserve.spec import OWN_FINDER, FindLearningRateSpec, TrainSpec


def finder_of(store: JobStore, spec: TrainSpec) -> tuple[FindLearningRateSpec, LearningRateResult] | None:
    """What the finder that a training names was asked, and what it found; None where it names none, or itself.

    Raises:
        NotFoundError: there is no such job.
        InvalidArgumentError: the job is no learning-rate finder.
        FailedPreconditionError: it has not SUCCEEDED.
    """
    if spec.lr_from in ("", OWN_FINDER):
        return None
    record = store.get(spec.lr_from)
    if not isinstance(record.spec, FindLearningRateSpec):
        raise InvalidArgumentError.field("train.lr_from", spec.lr_from, "a learning-rate finder; it is a training")
    if record.state is not JobState.SUCCEEDED or not isinstance(record.result, LearningRateResult):
        raise FailedPreconditionError(
            f"train.lr_from: {spec.lr_from} is {record.state.value}; wait until it has SUCCEEDED, or name another"
        )
    return record.spec, record.result
