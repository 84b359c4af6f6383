"""What happens in a job: one typed payload per kind of `pyserve.v1.Event`, stored as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class JobState(str, Enum):
    """Where a job stands (`pyserve.v1.JobState`)."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    INTERRUPTED = "INTERRUPTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ENDED = TERMINAL | {JobState.INTERRUPTED}  # nobody works on it, and nobody will by itself
ACTIVE = frozenset({JobState.RUNNING, JobState.CANCELLING})  # a worker has it


class Stored(BaseModel):
    """Base of what is stored as JSON: fields of later versions are left out, NaN and infinity stay."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class StateChange(Stored):
    """The job is in another state now."""

    kind: Literal["state"] = "state"
    state: JobState
    reason: str = ""
    report: str = ""  # of a training that made a model: "jobs/{id}/report"


class PhaseStarted(Stored):
    """A training goes on with other layers, data or rates (`pyserve.v1.PhaseStarted`)."""

    kind: Literal["phase"] = "phase"
    name: str
    phase: int  # counted from 1
    total_phases: int
    first_epoch: int  # counted from 1, over the whole training
    epochs: int
    learning_rate: float  # highest, of the head
    schedule: str
    frozen: bool  # only the head learns


class StepDone(Stored):
    """Training steps were done; told about twice a second."""

    kind: Literal["step"] = "step"
    step: int  # done so far
    total_steps: int
    loss: float  # smoothed, nats
    learning_rates: tuple[float, ...] = ()  # of each layer group that learns, head last
    images_per_s: float = 0.0  # since the last such event
    phase: str = ""


class EpochDone(Stored):
    """An epoch and its validation are done."""

    kind: Literal["epoch"] = "epoch"
    epoch: int  # counted from 1
    total_epochs: int
    metrics: dict[str, float]  # "train_loss"; "loss" and "accuracy" of the validation part
    best: bool
    elapsed_s: float
    phase: str = ""


class SpokenWarning(Stored):
    """Something the user should know (`pyserve.v1.Warning`)."""

    kind: Literal["warning"] = "warning"
    code: str
    message: str


class CheckpointSaved(Stored):
    """A checkpoint is safely on disk."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int  # done
    epoch: int  # done


class CurvePoint(Stored):
    """One mini-batch of a range test."""

    kind: Literal["curve_point"] = "curve_point"
    learning_rate: float
    loss: float  # nats
    smoothed_loss: float  # debiased moving average, nats
    run: int = 0  # which repeat


class Artifact(Stored):
    """A file of the job's `artifacts` folder."""

    kind: Literal["artifact"] = "artifact"
    name: str
    media_type: str
    size_bytes: int


class LogLine(Stored):
    """A line of text."""

    kind: Literal["log"] = "log"
    message: str


Payload = Annotated[
    StateChange
    | PhaseStarted
    | StepDone
    | EpochDone
    | SpokenWarning
    | CheckpointSaved
    | CurvePoint
    | Artifact
    | LogLine,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Payload] = TypeAdapter(Payload)


@dataclass(frozen=True)
class Event:
    """One entry of a job's log; sequence numbers count from 1 without a gap."""

    seq: int
    time: float  # seconds since the epoch
    payload: Payload


def parse_payload(text: str) -> Payload:
    """A payload from what `model_dump_json` made of it."""
    return _ADAPTER.validate_json(text)
