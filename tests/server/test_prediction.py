"""What prediction services share: which version answers, how long, and that nothing holds up the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.config import Settings
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_store import ModelStore
from pyserve.inference.predictor import Predictor
from pyserve.server.pools import Pools
from pyserve.server.prediction import Prediction
from pyserve.v1 import jobs_pb2
from tests.inference.test_bundle import saved
from tests.server.conftest import ServerThread
from tests.server.support import ServerProcess, Stubs, eventually
from tests.server.test_predict import request


class Busy:
    """A batcher that says of itself how many requests it has."""

    def __init__(self) -> None:
        self.requests = 0

    def unanswered(self, predictor: Predictor) -> tuple[int, int]:
        return self.requests, self.requests


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path)
    made.add("a", lambda folder: saved(folder) and None)
    return made


@pytest.fixture
def pools() -> Iterator[Pools]:
    made = Pools(max_waiting=8)
    yield made
    made.close()


async def test_a_busy_version_goes_on_until_the_new_one_is_loaded(store: ModelStore, pools: Pools) -> None:
    models, busy = LoadedModels(store, Settings(), "cpu"), Busy()
    prediction = Prediction(models, busy, pools, Settings())  # type: ignore[arg-type]
    first = await prediction.model("models/a")
    assert first.name == "models/a/versions/1"
    busy.requests = 3
    store.add("a", lambda folder: saved(folder) and None)
    assert await prediction.model("models/a") is first
    assert await prediction.model("models/a") is first
    await prediction.loaded("models/a")
    assert (await prediction.model("models/a")).name == "models/a/versions/2"
    assert await prediction.model("models/a/versions/1") is first


async def test_an_idle_version_gives_way_at_once(store: ModelStore, pools: Pools) -> None:
    prediction = Prediction(LoadedModels(store, Settings(), "cpu"), Busy(), pools, Settings())  # type: ignore[arg-type]
    await prediction.model("models/a")
    store.add("a", lambda folder: saved(folder) and None)
    assert (await prediction.model("models/a")).name == "models/a/versions/2"


async def test_a_new_version_that_cannot_be_loaded_changes_nothing(
    store: ModelStore, pools: Pools, tmp_path: Path
) -> None:
    models, busy = LoadedModels(store, Settings(), "cpu"), Busy()
    prediction = Prediction(models, busy, pools, Settings())  # type: ignore[arg-type]
    first = await prediction.model("models/a")
    store.add("a", lambda folder: saved(folder) and None)
    (tmp_path / "models" / "a" / "2" / "golden.safetensors").write_bytes(b"x")
    busy.requests = 1
    for _ in range(3):
        assert await prediction.model("models/a") is first
        await asyncio.sleep(0.05)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The network waits until the event is set."""
    gate = threading.Event()
    run = Predictor.probabilities

    def waiting(self: Predictor, batch: Any, *, tta: bool = False) -> np.ndarray[Any, Any]:
        assert gate.wait(60)
        return run(self, batch, tta=tta)

    monkeypatch.setattr(Predictor, "probabilities", waiting)
    yield gate
    gate.set()


def test_the_server_answers_while_every_worker_is_busy(
    server: ServerThread, stubs: Stubs, trained: jobs_pb2.Job, held: threading.Event
) -> None:
    calls = [stubs.predict.Predict.future(request(8), timeout=60) for _ in range(100)]
    health = health_pb2_grpc.HealthStub(stubs.channel)
    for _ in range(50):
        assert (
            health.Check(health_pb2.HealthCheckRequest(), timeout=5).status
            == health_pb2.HealthCheckResponse.SERVING
        )
        stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=5)
    assert not any(call.done() for call in calls)
    held.set()
    answers = [call.result() for call in calls]
    assert {len(answer.predictions) for answer in answers} == {8}


def test_callers_that_leave_take_their_pictures_out_of_the_queue(
    server: ServerThread, stubs: Stubs, trained: jobs_pb2.Job, held: threading.Event
) -> None:
    batcher: Any = server.server._batcher
    stays = stubs.predict.Predict.future(request(1), timeout=60)
    leaving = [stubs.predict.Predict.future(request(8), timeout=60) for _ in range(50)]
    eventually(lambda: batcher.unanswered() == (51, 401))
    for call in leaving:
        call.cancel()
    eventually(lambda: batcher.unanswered()[0] == 1)
    held.set()
    assert len(stays.result().predictions) == 1
    eventually(lambda: batcher.unanswered() == (0, 0))


def test_a_full_queue_refuses_with_a_delay(
    server: ServerThread, stubs: Stubs, trained: jobs_pb2.Job, held: threading.Event
) -> None:
    limit = server.settings.max_waiting_calls
    calls = [stubs.predict.Predict.future(request(1), timeout=60) for _ in range(limit + 40)]
    eventually(lambda: sum(call.done() for call in calls) >= 40)
    refused = [call.exception() for call in calls if call.done()]
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert f"the limit is {limit}" in refused[0].details()
    held.set()
    answered = [call for call in calls if call.exception() is None]
    assert len(answered) == limit


def test_a_drain_answers_all_that_are_in_flight(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    ModelStore(data_dir).add("a", lambda folder: saved(folder) and None)
    process = ServerProcess(data_dir)
    try:
        asked = request(64, tta=True)
        asked.model = "models/a"
        process.stubs.predict.Predict(asked, timeout=60)
        calls = [process.stubs.predict.Predict.future(asked, timeout=60) for _ in range(32)]
        eventually(lambda: any(call.done() for call in calls))
        process.process.terminate()
        answers = [call.result() for call in calls]
        assert [len(answer.predictions) for answer in answers] == [64] * 32
        with pytest.raises(grpc.RpcError):
            process.stubs.predict.Predict(asked, timeout=60)
    finally:
        begin = time.monotonic()
        assert process.terminate() == 0
        assert time.monotonic() - begin < 60
