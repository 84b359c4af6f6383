"""Event files, read by TensorBoard itself."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pyserve.jobs.events import (
    Artifact,
    CheckpointSaved,
    CurvePoint,
    EpochDone,
    Event,
    JobState,
    Payload,
    PhaseStarted,
    SpokenWarning,
    StateChange,
    StepDone,
)
from pyserve.jobs.records import JobRecord
from pyserve.jobs.store import JobStore
from pyserve.jobs.tensorboard import EventFile, _checksum
from tests.jobs.support import spec

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture
def record(tmp_path: Path) -> JobRecord:
    store = JobStore(tmp_path / "jobs.sqlite3")
    record = store.create(spec(epochs=3))
    store.close()
    return record


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def read(folder: Path, record: JobRecord, *payloads: Payload, files: dict[str, bytes] | None = None) -> Any:
    """What TensorBoard finds in the file of these events."""
    file = EventFile(record, (files or {}).get)
    events = [Event(seq, 1000.0 + seq, payload) for seq, payload in enumerate(payloads, 1)]
    path = folder / "events.out.tfevents.test"
    path.write_bytes(file.header() + b"".join(map(file.of, events)))
    return accumulators.EventAccumulator(str(path)).Reload()


def points(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]


def test_losses_rates_and_metrics(record: JobRecord, tmp_path: Path) -> None:
    found = read(
        tmp_path,
        record,
        StateChange(state=JobState.RUNNING),
        StepDone(step=1, total_steps=400, loss=2.5, learning_rates=(0.125, 0.25), images_per_s=64.0),
        StepDone(step=300, total_steps=400, loss=1.5, learning_rates=(0.5, 1.0), images_per_s=32.0),
        EpochDone(epoch=1, total_epochs=1, metrics={"train_loss": 1.25, "accuracy": 0.75}, best=True, elapsed_s=1),
        CheckpointSaved(step=300, epoch=1),
    )
    assert points(found, "train/loss") == [(1, 2.5), (300, 1.5)]
    assert points(found, "learning_rate/group_0") == [(1, 0.125), (300, 0.5)]
    assert points(found, "learning_rate/group_1") == [(1, 0.25), (300, 1.0)]
    assert points(found, "train/pictures_per_s") == [(1, 64.0), (300, 32.0)]
    assert points(found, "valid/accuracy") == [(300, 0.75)]
    assert points(found, "train/epoch_loss") == [(300, 1.25)]
    assert found.Scalars("train/loss")[0].wall_time == 1002.0


def test_range_tests_count_their_mini_batches(record: JobRecord, tmp_path: Path) -> None:
    def point(run: int) -> CurvePoint:
        return CurvePoint(learning_rate=0.5, loss=2.0, smoothed_loss=1.0, run=run)

    found = read(tmp_path, record, point(0), point(0), point(1))
    assert points(found, "range_test/loss") == [(1, 2.0), (2, 2.0)]
    assert points(found, "range_test_2/smoothed_loss") == [(1, 1.0)]


def test_texts_and_pictures(record: JobRecord, tmp_path: Path) -> None:
    phase = PhaseStarted(
        name="head",
        phase=1,
        total_phases=2,
        first_epoch=1,
        epochs=3,
        learning_rate=0.01,
        schedule="sgdr",
        frozen=True,
    )
    artifacts = [Artifact(name=f"{name}.png", media_type="image/png", size_bytes=1) for name in ("curve", "gone")]
    found = read(
        tmp_path,
        record,
        phase,
        SpokenWarning(code="loss_rising", message="loss rose: Größe 6×"),
        *artifacts,
        files={"curve.png": png(300, 7)},
    )
    assert found.Tags()["images"] == ["curve"]
    picture = found.Images("curve")[0]
    assert (picture.width, picture.height) == (300, 7)
    assert Image.open(io.BytesIO(picture.encoded_image_string)).size == (300, 7)
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert texts["warnings"] == "loss rose: Größe 6×"
    assert texts["phases"] == "1: head, 3 epochs of sgdr, learning rate 1.00e-02"
    assert '"epochs": 3' in texts["settings"]
    assert found.SummaryMetadata("settings").plugin_data.plugin_name == "text"


def test_the_checksum_is_crc_32c() -> None:
    masked = struct.unpack("<I", _checksum(b"123456789"))[0]
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    assert (rotated << 15 | rotated >> 17) & 0xFFFFFFFF == 0xE3069283  # RFC 3720's check value
