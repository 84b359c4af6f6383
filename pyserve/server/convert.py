"""Between protobuf messages and the types of the packages behind the services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from pyserve.data.folder import ScanOptions
from pyserve.data.manifest import Manifest
from pyserve.errors import InvalidArgumentError
from pyserve.inference.model_info import ModelInfo
from pyserve.insight.figures import FigureFile
from pyserve.jobs.events import Artifact, Event, JobState, Payload, StateChange
from pyserve.jobs.records import JobRecord, Result, TrainResult
from pyserve.spec import FindLearningRateSpec, JobSpec, TrainSpec, parse
from pyserve.v1 import common_pb2, datasets_pb2, jobs_pb2, models_pb2


def plain(message: Message) -> dict[str, Any]:
    """The fields that are set, as plain values.

    Not json_format's: that one makes texts of 64-bit integers, NaN and infinity.
    """
    return {
        descriptor.name: plain(value) if isinstance(value, Message) else value
        for descriptor, value in message.ListFields()
    }


def train_spec(message: jobs_pb2.TrainSpec) -> TrainSpec:
    """The checked spec of `TrainRequest.train`."""
    spec: TrainSpec = parse(TrainSpec, plain(message), "train")
    return spec


def find_learning_rate_spec(message: jobs_pb2.FindLearningRateSpec) -> FindLearningRateSpec:
    """The checked spec of `FindLearningRateRequest.find_learning_rate`."""
    spec: FindLearningRateSpec = parse(FindLearningRateSpec, plain(message), "find_learning_rate")
    return spec


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch."""
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def scan_options(message: datasets_pb2.DatasetOptions, prefix: str) -> ScanOptions:
    """How a dataset is made, checked.

    Args:
        prefix: the request field that holds the options.
    """
    policies = {
        datasets_pb2.BAD_IMAGE_POLICY_UNSPECIFIED: "leave_out",
        datasets_pb2.LEAVE_OUT: "leave_out",
        datasets_pb2.REFUSE: "refuse",
    }
    policy = policies.get(message.bad_images)
    if policy is None:
        raise InvalidArgumentError.field(f"{prefix}.bad_images", message.bad_images, "LEAVE_OUT or REFUSE")
    values: dict[str, Any] = {"bad_images": policy}
    if message.HasField("valid_fraction"):
        if not 0 < message.valid_fraction < 1:
            raise InvalidArgumentError.field(
                f"{prefix}.valid_fraction", message.valid_fraction, "a number between 0 and 1"
            )
        values["valid_fraction"] = message.valid_fraction
    if message.HasField("seed"):
        if not 0 <= message.seed < 2**31:
            raise InvalidArgumentError.field(f"{prefix}.seed", message.seed, "0 to 2147483647")
        values["seed"] = message.seed
    return ScanOptions(**values)


def dataset(manifest: Manifest) -> datasets_pb2.Dataset:
    """A dataset as its clients see it."""
    counts = Counter((item.part, item.label) for item in manifest.items)
    classes = [
        datasets_pb2.DatasetClass(
            name=name, train_count=counts["train", label], valid_count=counts["valid", label]
        )
        for label, name in enumerate(manifest.classes)
    ]
    message = datasets_pb2.Dataset(
        name=f"datasets/{manifest.dataset_id}",
        classes=classes,
        train_count=sum(c.train_count for c in classes),
        valid_count=sum(c.valid_count for c in classes),
        size_bytes=manifest.size_bytes,
        digest=manifest.digest,
        bad_images=[datasets_pb2.BadImage(path=bad.path, reason=bad.reason) for bad in manifest.bad_images],
        has_own_split=manifest.has_own_split,
        create_time=timestamp(manifest.create_time),
        version=manifest.version,
    )
    if manifest.origin is not None:
        corrections = [
            datasets_pb2.Correction(path=c.path, old_label=c.old, new_label=c.new)
            for c in manifest.origin.corrections
        ]
        origin = datasets_pb2.Origin(
            dataset=manifest.origin.dataset, digest=manifest.origin.digest, corrections=corrections
        )
        message.origin.CopyFrom(origin)
    return message


# Jobs


def job(record: JobRecord) -> jobs_pb2.Job:
    """A job as its clients see it."""
    message = jobs_pb2.Job(
        name=record.name,
        state=job_state(record.state),
        create_time=timestamp(record.create_time),
        reason=record.reason,
        progress=jobs_pb2.Progress(**record.progress.model_dump()),
        artifacts=[_artifact(artifact) for artifact in record.artifacts],
        last_seq=record.last_seq,
        attempt=record.attempt,
        **{record.kind: _spec(record.spec)},
    )
    if record.start_time is not None:
        message.start_time.CopyFrom(timestamp(record.start_time))
    if record.end_time is not None:
        message.end_time.CopyFrom(timestamp(record.end_time))
    if record.error is not None:
        code = grpc.StatusCode[record.error.status].value[0]
        message.error.CopyFrom(status_pb2.Status(code=code, message=record.error.message))
    if record.result is not None:
        _set_result(message, record.result)
    return message


def job_state(state: JobState) -> jobs_pb2.JobState.ValueType:
    """A state by its name, which both sides share."""
    return jobs_pb2.JobState.Value(state.value)


def job_states(numbers: Iterable[int]) -> list[JobState]:
    """The states of a request's filter, checked."""
    known: dict[int, JobState] = {job_state(state): state for state in JobState}
    for number in numbers:
        if number not in known:
            raise InvalidArgumentError.field("states", number, f"one of {', '.join(s.value for s in JobState)}")
    return [known[number] for number in numbers]


def event(happened: Event) -> jobs_pb2.Event:
    """An entry of a job's log."""
    message = jobs_pb2.Event(seq=happened.seq, time=timestamp(happened.time))
    getattr(message, happened.payload.kind).CopyFrom(_payload(happened.payload))
    return message


_PAYLOADS: dict[str, type[Message]] = {
    "phase": jobs_pb2.PhaseStarted,
    "step": jobs_pb2.StepDone,
    "epoch": jobs_pb2.EpochDone,
    "warning": jobs_pb2.Warning,
    "checkpoint": jobs_pb2.CheckpointSaved,
    "curve_point": jobs_pb2.CurvePoint,
    "log": jobs_pb2.LogLine,
}


def _payload(payload: Payload) -> Message:
    """Stored payloads have the names of their messages' fields."""
    if isinstance(payload, StateChange):
        return jobs_pb2.StateChange(state=job_state(payload.state), reason=payload.reason, report=payload.report)
    if isinstance(payload, Artifact):
        return _artifact(payload)
    return _PAYLOADS[payload.kind](**payload.model_dump(exclude={"kind"}))


def _artifact(artifact: Artifact) -> jobs_pb2.Artifact:
    return jobs_pb2.Artifact(name=artifact.name, media_type=artifact.media_type, size_bytes=artifact.size_bytes)


def _spec(spec: JobSpec) -> Any:
    """A spec with its defaults filled in; what has none stays absent."""
    values = spec.model_dump(exclude_none=True)
    if isinstance(spec, TrainSpec):
        return jobs_pb2.TrainSpec(**values)
    values["training"] = jobs_pb2.TrainSpec(**values["training"])
    return jobs_pb2.FindLearningRateSpec(**values)


def _set_result(message: jobs_pb2.Job, result: Result) -> None:
    if isinstance(result, TrainResult):
        message.train_result.CopyFrom(jobs_pb2.TrainResult(**result.model_dump()))
        return
    values = result.model_dump(exclude={"suggestions", "curve", "dataset_digest"})
    message.learning_rate_result.CopyFrom(
        jobs_pb2.LearningRateResult(
            suggestions=[jobs_pb2.Suggestion(**s.model_dump()) for s in result.suggestions],
            curve=[jobs_pb2.CurvePoint(**p.model_dump(exclude={"kind"})) for p in result.curve],
            **values,
        )
    )


# Models and figures


def model(info: ModelInfo, *, loaded: bool) -> models_pb2.Model:
    """A model version as its clients see it."""
    return models_pb2.Model(
        name=info.name,
        architecture=info.architecture,
        labels=info.labels,
        image_size=info.preprocessing.image_size,
        metrics=info.metrics,
        parameter_count=info.parameter_count,
        size_bytes=info.size_bytes,
        create_time=timestamp(info.create_time),
        provenance=info.provenance,
        aliases=info.aliases,
        loaded=loaded,
        temperature=info.description.temperature,
    )


def array(values: npt.NDArray[Any]) -> common_pb2.Array:
    """An array as it travels: little-endian, row-major."""
    ordered = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return common_pb2.Array(shape=values.shape, dtype=values.dtype.name, data=ordered.tobytes())


def part(name: str) -> common_pb2.Part.ValueType:
    """ "train" or "valid"."""
    return common_pb2.PART_TRAIN if name == "train" else common_pb2.PART_VALID


def figures(files: Iterable[FigureFile], *, stem: str = "") -> list[common_pb2.Figure]:
    """Figures as they travel; `stem` replaces their names up to the ending."""
    return [
        common_pb2.Figure(
            name=f"{stem}{Path(file.name).suffix}" if stem else file.name,
            media_type=file.media_type,
            data=file.data,
        )
        for file in files
    ]
