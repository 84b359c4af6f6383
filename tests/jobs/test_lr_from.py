from __future__ import annotations

from pathlib import Path

import pytest

from pyserve.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from pyserve.jobs.events import JobState
from pyserve.jobs.lr_from import finder_of
from pyserve.jobs.records import LearningRateResult
from pyserve.jobs.store import JobStore
from pyserve.spec import FindLearningRateSpec
from tests.jobs.support import spec

MISSING = "jobs/01890000-0000-7000-8000-000000000000"
FOUND = LearningRateResult(
    learning_rate=0.02, rule="valley", suggestions=(), curve=(), diverged=True, dataset_digest="a" * 64
)


def test_only_a_finder_that_has_found_something_will_do(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    asked = FindLearningRateSpec(training=spec())
    finder, training = store.create(asked), store.create(spec())
    assert finder_of(store, spec()) is None
    with pytest.raises(NotFoundError, match=MISSING):
        finder_of(store, spec(lr_from=MISSING))
    with pytest.raises(InvalidArgumentError, match=r"train.lr_from: got '.*it is a training"):
        finder_of(store, spec(lr_from=training.name))
    with pytest.raises(FailedPreconditionError, match="is QUEUED; wait"):
        finder_of(store, spec(lr_from=finder.name))
    store.claim_next()
    store.finish(finder.name, 1, JobState.SUCCEEDED, result=FOUND)
    assert finder_of(store, spec(lr_from=finder.name)) == (asked, FOUND)
    store.close()
