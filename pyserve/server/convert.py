"""Between protobuf messages and the types of the packages behind the services."""

from __future__ import annotations

from collections import Counter
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from pyserve.data.folder import ScanOptions
from pyserve.data.manifest import Manifest
from pyserve.errors import InvalidArgumentError
from pyserve.spec import FindLearningRateSpec, TrainSpec, parse
from pyserve.v1 import datasets_pb2, jobs_pb2


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
    return datasets_pb2.Dataset(
        name=f"datasets/{manifest.dataset_id}",
        classes=classes,
        train_count=sum(c.train_count for c in classes),
        valid_count=sum(c.valid_count for c in classes),
        size_bytes=manifest.size_bytes,
        digest=manifest.digest,
        bad_images=[datasets_pb2.BadImage(path=bad.path, reason=bad.reason) for bad in manifest.bad_images],
        has_own_split=manifest.has_own_split,
        create_time=timestamp(manifest.create_time),
    )
