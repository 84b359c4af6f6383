"""Parts of requests from plain values, or the sentence that says which value is wrong."""

from __future__ import annotations

from typing import Any, TypeVar

from pyserve.errors import FieldViolation, InvalidArgumentError
from pyserve.v1 import datasets_pb2, jobs_pb2

Message = TypeVar("Message", jobs_pb2.TrainSpec, jobs_pb2.FindLearningRateSpec)


def dataset_options(
    valid_fraction: float | None, seed: int | None, bad_images: str
) -> datasets_pb2.DatasetOptions:
    """How a dataset is made; None leaves a value to the server."""
    policy = enum_number(datasets_pb2.BadImagePolicy, bad_images, "bad_images")
    return datasets_pb2.DatasetOptions(bad_images=policy, valid_fraction=valid_fraction, seed=seed)


def enum_number(enum: Any, name: str, field: str, prefix: str = "") -> Any:
    """An enum's value by its name in lower case, without the prefix that its values share in the .proto file."""
    known = [key for key in enum.keys() if not key.endswith("UNSPECIFIED")]  # noqa: SIM118  # not a dict
    if prefix + name.upper() not in known:
        choices = ", ".join(key.removeprefix(prefix).lower() for key in known)
        raise InvalidArgumentError.field(field, name, f"one of {choices}")
    return enum.Value(prefix + name.upper())


def spec_message(message: type[Message], values: dict[str, Any], field: str) -> Message:
    """The message of a spec, or the sentence for the first field that does not belong or has the wrong type."""
    spec = message()
    for name, value in values.items():
        if name not in message.DESCRIPTOR.fields_by_name:
            description = f"got {value!r}, expected no such field"
            raise InvalidArgumentError(
                f"{field}.{name}: {description}", fields=(FieldViolation(f"{field}.{name}", description),)
            )
        if value is not None:
            try:
                setattr(spec, name, value)
            except (TypeError, ValueError) as error:
                problem = f"a value of the field's type ({error})"
                raise InvalidArgumentError.field(f"{field}.{name}", value, problem) from None
    return spec
