"""What may be deleted: never what is newest, best, named by an alias, or needed by a job that has not ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyserve.inference.description import Description, FileRecord, Preprocessing
from pyserve.inference.model_info import ModelInfo
from pyserve.jobs.events import TERMINAL, JobState
from pyserve.jobs.records import JobRecord, Progress, new_job_id
from pyserve.jobs.retention import removable_checkpoints, removable_jobs, removable_versions
from tests.jobs.support import RESULT, spec


def record(
    state: JobState = JobState.SUCCEEDED,
    accuracy: float = 0.5,
    model: str = "pets",
    version: int = 1,
    **fields: object,
) -> JobRecord:
    result = RESULT.model_copy(
        update={"model": f"models/{model}/versions/{version}", "metrics": {"accuracy": accuracy}}
    )
    return JobRecord(
        id=new_job_id(),
        spec=spec(model, **fields),
        state=state,
        reason="",
        attempt=1,
        create_time=0.0,
        start_time=0.0,
        end_time=0.0,
        progress=Progress(),
        result=result if state is JobState.SUCCEEDED else None,
        error=None,
        artifacts=(),
        last_seq=1,
    )


def info(version: int, accuracy: float = 0.5, model: str = "pets", aliases: tuple[str, ...] = ()) -> ModelInfo:
    description = Description(
        architecture="smallnet",
        labels=("a", "b"),
        preprocessing=Preprocessing(image_size=8, presize=8, mean=(0, 0, 0), std=(1, 1, 1)),
        metrics={"accuracy": accuracy},
        parameter_count=1,
        create_time=float(version),
        files={
            name: FileRecord(size_bytes=1, sha256="0" * 64) for name in ("model.safetensors", "golden.safetensors")
        },
    )
    return ModelInfo(model, version, Path("nowhere"), description, aliases)


def test_the_newest_jobs_and_the_best_stay() -> None:
    jobs = [record(accuracy=a) for a in (0.1, 0.9, 0.2, 0.3)]
    assert removable_jobs(jobs, 1, set()) == [jobs[2].name, jobs[0].name]
    assert removable_jobs(jobs[::-1], 0, set()) == [jobs[3].name, jobs[2].name, jobs[0].name]
    assert removable_jobs(jobs, 4, set()) == []


def test_each_model_has_its_best_job() -> None:
    jobs = [record(model="a", accuracy=0.9), record(model="b", accuracy=0.1), record(model="a", accuracy=0.8)]
    assert removable_jobs(jobs, 0, set()) == [jobs[2].name]


@pytest.mark.parametrize("state", [state for state in JobState if state not in TERMINAL])
def test_jobs_that_have_not_ended_for_good_stay(state: JobState) -> None:
    jobs = [record(state), record(JobState.FAILED), record(JobState.CANCELLED)]
    assert removable_jobs(jobs, 0, set()) == [jobs[2].name, jobs[1].name]
    assert removable_checkpoints(jobs, 0) == [jobs[2].name, jobs[1].name]
    assert removable_checkpoints(jobs, 1) == [jobs[1].name]


def test_the_training_of_a_model_in_use_stays() -> None:
    jobs = [record(accuracy=0.1, version=1), record(accuracy=0.9, version=2)]
    assert removable_jobs(jobs, 0, set()) == [jobs[0].name]
    assert removable_jobs(jobs, 0, {"models/pets/versions/1"}) == []


def test_the_finder_of_a_job_that_waits_stays() -> None:
    finder = record(JobState.CANCELLED)
    waiting, ended = record(JobState.QUEUED, lr_from=finder.name), record(JobState.FAILED, lr_from=finder.name)
    assert removable_jobs([finder, waiting], 0, set()) == []
    assert finder.name in removable_jobs([finder, ended], 0, set())


def test_the_newest_versions_the_best_the_named_and_the_used_stay() -> None:
    infos = [info(1), info(2, 0.9), info(3, aliases=("champion",)), info(4), info(5), info(6)]
    assert removable_versions(infos, 1, {"models/pets/versions/4"}) == [
        "models/pets/versions/5",
        "models/pets/versions/1",
    ]
    assert removable_versions(infos, 6, set()) == []


def test_of_equally_good_versions_the_newest_is_the_best_and_models_do_not_mix() -> None:
    infos = [info(1, 0.7), info(2, 0.7), info(3, 0.1), info(1, 0.2, model="cars")]
    assert removable_versions(infos, 1, set()) == ["models/pets/versions/1"]
