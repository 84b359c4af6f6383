"""The container, from outside, as a client meets it. Run by scripts/image, which says where it listens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from pyserve.client import Client
from pyserve.errors import UnauthenticatedError
from pyserve.v1 import jobs_pb2
from tests.server.support import pictures, zipped

ADDRESS = os.environ.get("PYSERVE_IMAGE_ADDRESS", "")
pytestmark = pytest.mark.skipif(not ADDRESS, reason="needs a container: scripts/image builds and runs one")


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(ADDRESS) as made:  # certificate authority and token come from the environment
        yield made


def test_from_pictures_to_predictions(client: Client, tmp_path: Path) -> None:
    archive = tmp_path / "colours.zip"
    archive.write_bytes(zipped(pictures()))
    dataset = client.upload_dataset(archive, "colours")
    assert [entry.name for entry in dataset.classes] == ["blue", "green", "red"]
    fields = {"dataset": dataset.name, "architecture": "smallnet", "image_size": 16, "batch_size": 8}
    found = client.wait(client.find_learning_rate(**fields).name)
    assert found.state == jobs_pb2.SUCCEEDED, found.reason
    job = client.train(**fields, epochs=6, learning_rate=0.01, augment="flip")
    seen = [event.seq for event in client.watch(job.name)]
    done = client.get_job(job.name)
    assert done.state == jobs_pb2.SUCCEEDED, done.reason
    assert seen == list(range(1, done.last_seq + 1))
    answer = client.predict("models/colours", [pictures()["red/3.png"]])
    assert answer.predictions[0].scores[0].label == "red"
    tensor = np.zeros((3, 16, 16, 3), np.uint8)
    assert len(client.predict("models/colours", tensor).predictions) == 3
    assert any(variant.calls for variant in client.kernels().variants)
    matrix = client.confusion_matrix("models/colours")
    assert matrix.figures[0].data.startswith(b"\x89PNG")


def test_strangers_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSERVE_TOKEN")
    with Client(ADDRESS) as stranger:
        assert stranger.health() == "SERVING"
        with pytest.raises(UnauthenticatedError):
            stranger.list_jobs()
    with grpc.insecure_channel(ADDRESS) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(2)
