"""Checks of request fields that several services share; each error names the field."""

from __future__ import annotations

import re
import uuid
from typing import Literal

from pyserve.errors import InvalidArgumentError
from pyserve.inference.model_store import NAME_FORMS
from pyserve.inference.work import FIRST_PRIORITY, LAST_PRIORITY
from pyserve.spec import RESOURCE_ID
from pyserve.v1 import common_pb2

_MODEL = re.compile(rf"models/{RESOURCE_ID}(/versions/[1-9][0-9]{{0,8}}|@{RESOURCE_ID})?")
_JOB = r"jobs/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

Part = Literal["train", "valid"]


def request_id(value: str, field: str = "request_id") -> str:
    """The UUID in its canonical spelling; empty stays empty."""
    if not value:
        return ""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise InvalidArgumentError.field(field, value, "a UUID, or nothing") from None


def resource_id(value: str, field: str) -> str:
    """The name part of a new resource."""
    if not re.fullmatch(RESOURCE_ID, value):
        raise InvalidArgumentError.field(
            field,
            value,
            "1 to 63 lower-case letters, digits, '-' and '_', starting with a letter or a digit",
        )
    return value


def dataset_name(value: str, field: str = "name") -> str:
    """A dataset's resource name."""
    if not re.fullmatch(rf"datasets/{RESOURCE_ID}", value):
        raise InvalidArgumentError.field(field, value, "datasets/{dataset_id}")
    return value


def model_name(value: str, field: str = "name") -> str:
    """Any name of a model: with a version, with an alias, or with neither."""
    if not re.fullmatch(_MODEL, value):
        raise InvalidArgumentError.field(field, value, NAME_FORMS)
    return value


def job_name(value: str, field: str = "name") -> str:
    """A job's resource name."""
    if not re.fullmatch(_JOB, value):
        raise InvalidArgumentError.field(field, value, "jobs/{id}")
    return value


def trained_name(value: str) -> str:
    """Name of a model or of a training, the latter also with the "/report" of a job's last event."""
    return job_name(value.removesuffix("/report")) if value.startswith("jobs/") else model_name(value)


def artifact_name(value: str) -> tuple[str, str]:
    """Job and file name of "jobs/{id}/artifacts/{artifact}"."""
    match = re.fullmatch(rf"(?P<job>{_JOB})/artifacts/(?P<file>[A-Za-z0-9][A-Za-z0-9._-]{{0,127}})", value)
    if match is None:
        raise InvalidArgumentError.field("name", value, "jobs/{id}/artifacts/{artifact}")
    return match["job"], match["file"]


def part(value: int) -> Part:
    """Which part of a dataset is meant; the validation part where the request does not say."""
    if value == common_pb2.PART_TRAIN:
        return "train"
    if value in (common_pb2.PART_UNSPECIFIED, common_pb2.PART_VALID):
        return "valid"
    raise InvalidArgumentError.field("part", value, "PART_TRAIN or PART_VALID")


def priority(value: int, field: str = "priority") -> int:
    """A prediction's priority."""
    return in_range(value, FIRST_PRIORITY, LAST_PRIORITY, field)


def in_range(value: int, low: int, high: int, field: str) -> int:
    """A number within its limits."""
    if not low <= value <= high:
        raise InvalidArgumentError.field(field, value, f"{low} to {high}")
    return value
