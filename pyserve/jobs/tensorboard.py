"""A job's log as a TensorBoard event file.

Such a file is a row of records (TFRecord: length, its checksum, data, its checksum), each a protobuf message
`tensorflow.Event`. Only the few fields that scalars, texts and pictures need are written, so nothing of
TensorBoard is needed here; their numbers are those of tensorboard/compat/proto/{event,summary,tensor}.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from pyserve.jobs.events import Artifact, CurvePoint, EpochDone, Event, PhaseStarted, SpokenWarning, StepDone
from pyserve.jobs.records import JobRecord

ReadArtifact = Callable[[str], bytes | None]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_DT_STRING = 7
_CASTAGNOLI = 0x82F63B78  # CRC-32C's polynomial, reflected


class EventFile:
    """Turns a job's events into the bytes of a file, in their order.

    Args:
        record: the job.
        read_artifact: a file of the job by its name; None where it is gone.
    """

    def __init__(self, record: JobRecord, read_artifact: ReadArtifact) -> None:
        self._record = record
        self._read = read_artifact
        self._step = 0
        self._points: dict[str, int] = {}  # of each range test

    def header(self) -> bytes:
        """What the file begins with: its version and the job's settings."""
        time = self._record.create_time
        version = _message(_double(1, time), _field(3, b"brain.Event:2"))
        settings = self._record.spec.model_dump_json(indent=2, exclude_defaults=True)
        return _record(version) + _event(time, 0, _text("settings", f"```\n{settings}\n```"))

    def of(self, event: Event) -> bytes:
        """The bytes of an event; none of one that TensorBoard has no place for."""
        values = list(self._values(event))
        return _event(event.time, self._step, *values) if values else b""

    def _values(self, event: Event) -> Iterator[bytes]:
        payload = event.payload
        if isinstance(payload, StepDone):
            self._step = payload.step
            yield _scalar("train/loss", payload.loss)
            yield _scalar("train/pictures_per_s", payload.images_per_s)
            for group, rate in enumerate(payload.learning_rates):
                yield _scalar(f"learning_rate/group_{group}", rate)
        elif isinstance(payload, EpochDone):
            for name, value in payload.metrics.items():
                yield _scalar("train/epoch_loss" if name == "train_loss" else f"valid/{name}", value)
        elif isinstance(payload, CurvePoint):
            yield from self._curve_point(payload)
        elif isinstance(payload, PhaseStarted):
            self._points.clear()
            how = f"{payload.schedule}, learning rate {payload.learning_rate:.2e}"
            yield _text("phases", f"{payload.phase}: {payload.name}, {payload.epochs} epochs of {how}")
        elif isinstance(payload, SpokenWarning):
            yield _text("warnings", payload.message)
        elif isinstance(payload, Artifact) and payload.media_type == "image/png":
            data = self._read(payload.name)
            if data is not None:
                yield _picture(payload.name.removesuffix(".png"), data)

    def _curve_point(self, point: CurvePoint) -> Iterator[bytes]:
        """Against the number of the mini-batch: TensorBoard knows no other axis."""
        name = "range_test" if point.run == 0 else f"range_test_{point.run + 1}"
        self._step = self._points[name] = self._points.get(name, 0) + 1
        yield _scalar(f"{name}/learning_rate", point.learning_rate)
        yield _scalar(f"{name}/loss", point.loss)
        yield _scalar(f"{name}/smoothed_loss", point.smoothed_loss)


def _event(time: float, step: int, *values: bytes) -> bytes:
    summary = _message(*(_field(1, value) for value in values))
    return _record(_message(_double(1, time), _number(2, step), _field(5, summary)))


def _scalar(tag: str, value: float) -> bytes:
    return _message(_field(1, tag.encode()), struct.pack("<Bf", 2 << 3 | _FIXED32, value))


def _text(tag: str, markdown: str) -> bytes:
    metadata = _field(1, _field(1, b"text"))  # which plug-in shows it
    shape = _field(2, _number(1, 1))
    tensor = _message(_number(1, _DT_STRING), _field(2, shape), _field(8, markdown.encode()))
    return _message(_field(1, tag.encode()), _field(9, metadata), _field(8, tensor))


def _picture(tag: str, png: bytes) -> bytes:
    width, height = struct.unpack(">II", png[16:24])  # of its first chunk
    picture = _message(_number(1, height), _number(2, width), _number(3, 4), _field(4, png))
    return _message(_field(1, tag.encode()), _field(4, picture))


def _message(*fields: bytes) -> bytes:
    return b"".join(fields)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return struct.pack("<Bd", number << 3 | _FIXED64, value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, a set top bit for each but the last."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted so that a checksum of checksums does not go wrong (TFRecord's mask)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = [_crc_of(byte) for byte in range(256)]
