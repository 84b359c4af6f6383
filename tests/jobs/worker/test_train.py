from __future__ import annotations

from pathlib import Path

import pytest

from pyserve.errors import FailedPreconditionError
from pyserve.jobs.events import JobState, SpokenWarning
from pyserve.jobs.records import LearningRateResult
from pyserve.jobs.runner import WorkerOrder
from pyserve.jobs.store import JobStore
from pyserve.jobs.worker.process import Control
from pyserve.jobs.worker.report import JobReport
from pyserve.jobs.worker.train import stopped, with_suggested_rate
from pyserve.spec import FindLearningRateSpec, TrainSpec
from tests.jobs.pictures import add_dataset

DIGEST = "d" * 64


class Case:
    """A finder that has found 0.02 on the given data, and a training that names it."""

    def __init__(self, folder: Path, digest: str = DIGEST, **fields: object) -> None:
        self.manifest = add_dataset(folder, per_class=3)
        self.store = JobStore(folder / "jobs.sqlite3")
        plain = TrainSpec(dataset="datasets/tints", batch_size=8)
        finder = self.store.create(FindLearningRateSpec(training=plain))
        self.store.claim_next()
        found = LearningRateResult(
            learning_rate=0.02, rule="valley", suggestions=(), curve=(), diverged=True, dataset_digest=digest
        )
        self.store.finish(finder.name, 1, JobState.SUCCEEDED, result=found)
        values = {"dataset": "datasets/tints", "batch_size": 8, "lr_from": finder.name} | fields
        self.spec = TrainSpec(**values)  # type: ignore[arg-type]
        self.name = self.store.create(self.spec).name
        self.store.claim_next()
        order = WorkerOrder(
            name=self.name,
            attempt=1,
            data_dir=folder,
            store_path=self.store.path,
            threads=1,
            checkpoint_interval_s=1,
        )
        self.report = JobReport(self.store, order, lambda: None)

    def run(self) -> tuple[float | None, float | None, list[str]]:
        """The rate to train with, the suggested one, and the warnings."""
        spec, suggested = with_suggested_rate(self.spec, self.manifest, self.report)
        events = [event.payload for event in self.store.events(self.name)]
        self.store.close()
        return spec.learning_rate, suggested, [e.message for e in events if isinstance(e, SpokenWarning)]


def test_the_rate_is_taken(tmp_path: Path) -> None:
    assert Case(tmp_path).run() == (0.02, 0.02, [])


def test_a_rate_of_its_own_stays(tmp_path: Path) -> None:
    assert Case(tmp_path, learning_rate=0.5).run() == (0.5, 0.02, [])


def test_without_a_finder(tmp_path: Path) -> None:
    assert Case(tmp_path, lr_from="").run() == (None, None, [])


@pytest.mark.parametrize(
    ("digest", "fields", "difference"),
    [
        ("e" * 64, {}, "data version: dddddddddddd here, eeeeeeeeeeee there"),
        (DIGEST, {"batch_size": 16}, "pictures per step: 16 here, 8 there"),
        (DIGEST, {"freeze_body": True}, "frozen body: True here, False there"),
    ],
)
def test_differences_are_told_or_refused(
    tmp_path: Path, digest: str, fields: dict[str, object], difference: str
) -> None:
    rate, _, [warning] = Case(tmp_path / "warn", digest, **fields).run()
    assert rate == 0.02
    assert difference in warning
    with pytest.raises(FailedPreconditionError, match=f"train.lr_from: .*{difference}"):
        Case(tmp_path / "refuse", digest, lr_from_policy="refuse", **fields).run()


def test_how_a_stopped_job_ends() -> None:
    assert stopped("cancelled", Control()).state is JobState.CANCELLED
    ending = stopped("interrupted", Control(reason="because"))
    assert (ending.state, ending.reason) == (JobState.INTERRUPTED, "because")
