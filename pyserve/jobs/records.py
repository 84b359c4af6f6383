"""A job as the store tells it, and what comes out of one."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Literal

from pyserve.errors import InvalidArgumentError
from pyserve.jobs.events import Artifact, CurvePoint, JobState, Stored
from pyserve.spec import FindLearningRateSpec, JobSpec, TrainSpec

Kind = Literal["train", "find_learning_rate"]
SPECS: dict[Kind, type[TrainSpec] | type[FindLearningRateSpec]] = {
    "train": TrainSpec,
    "find_learning_rate": FindLearningRateSpec,
}
_NAME = re.compile(r"jobs/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")


class Progress(Stored):
    """How far a job is; of a range test one step is one mini-batch, and there are no epochs."""

    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    total_epochs: int = 0
    phase: str = ""


class TrainResult(Stored):
    """What came out of a training (`pyserve.v1.TrainResult`)."""

    model: str  # "models/{model_id}/versions/{n}"
    best_epoch: int
    epochs_run: int
    stopped_early: bool
    metrics: dict[str, float]
    learning_rate: float
    elapsed_s: float


class Suggestion(Stored):
    """What one rule suggests (`pyserve.v1.Suggestion`); 0 where it found no learning rate."""

    rule: str
    learning_rate: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    problem: str = ""


class LearningRateResult(Stored):
    """What came out of a range test (`pyserve.v1.LearningRateResult`)."""

    learning_rate: float
    rule: str
    suggestions: tuple[Suggestion, ...]
    curve: tuple[CurvePoint, ...]
    diverged: bool
    dataset_digest: str = ""  # of the data it read, for `lr_from`


class JobError(Stored):
    """The error of a FAILED job."""

    status: str  # name of a gRPC status code
    message: str


Result = TrainResult | LearningRateResult
RESULTS: dict[Kind, type[TrainResult] | type[LearningRateResult]] = {
    "train": TrainResult,
    "find_learning_rate": LearningRateResult,
}


@dataclass(frozen=True)
class JobRecord:
    """A job at one moment. Times are seconds since the epoch, None where it has not come to that."""

    id: str
    spec: JobSpec
    state: JobState
    reason: str
    attempt: int  # how many workers have run it
    create_time: float
    start_time: float | None
    end_time: float | None
    progress: Progress
    result: Result | None
    error: JobError | None
    artifacts: tuple[Artifact, ...]
    last_seq: int

    @property
    def name(self) -> str:
        """`jobs/{id}`."""
        return f"jobs/{self.id}"

    @property
    def kind(self) -> Kind:
        """What sort of job."""
        return kind_of(self.spec)

    @property
    def training(self) -> TrainSpec:
        """The training that it runs, or for which it seeks the rate."""
        return self.spec if isinstance(self.spec, TrainSpec) else self.spec.training


def kind_of(spec: JobSpec) -> Kind:
    """What sort of job a spec asks for."""
    return "train" if isinstance(spec, TrainSpec) else "find_learning_rate"


def job_id(name: str) -> str:
    """The id in `jobs/{id}`.

    Raises:
        InvalidArgumentError: another form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidArgumentError.field("name", name[:200], "jobs/{id}, id a lower-case UUID")
    return match[1]


_clock_lock = threading.Lock()
_last_tick = 0


def new_job_id() -> str:
    """A UUID of version 7 (RFC 9562): milliseconds, 12 bits below them, 62 random bits; ascending in a process."""
    global _last_tick  # noqa: PLW0603  two ids of one tick would have no order
    with _clock_lock:
        _last_tick = max(_last_tick + 1, time.time_ns() * 4096 // 1_000_000)
        tick = _last_tick
    rest = int.from_bytes(os.urandom(8), "big") >> 2
    value = (tick >> 12) << 80 | 7 << 76 | (tick & 0xFFF) << 64 | 2 << 62 | rest
    return str(uuid.UUID(int=value))
