"""What Prometheus is told, read as Prometheus reads it."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyserve.config import Settings
from pyserve.errors import UnavailableError
from pyserve.server.app import Server
from pyserve.v1 import jobs_pb2
from tests.server.conftest import ServerThread
from tests.server.support import Stubs, failure
from tests.server.test_predict import request

MODEL = "models/colours/versions/1"


def scrape(server: ServerThread) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(sample, labels) → value."""
    url = f"http://127.0.0.1:{server.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(samples: Any, name: str, **labels: str) -> float:
    return float(samples.get((name, tuple(sorted(labels.items()))), 0.0))


def test_predictions_are_counted_stage_by_stage(server: ServerThread, stubs: Stubs, trained: jobs_pb2.Job) -> None:
    stubs.predict.Predict(request(1), timeout=20)
    before = scrape(server)
    stubs.predict.Predict(request(20), timeout=20)
    bad = request(1)
    bad.images.data[0] = b"none"
    failure(lambda: stubs.predict.Predict(bad, timeout=20))
    after = scrape(server)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("pyserve_predict_requests_total", model=MODEL, outcome="answered") == 1
    assert grown("pyserve_predict_requests_total", model=MODEL, outcome="failed") == 1
    assert grown("pyserve_predict_duration_seconds_count", model=MODEL) == 1
    assert grown("pyserve_predict_duration_seconds_bucket", model=MODEL, le="+Inf") == 1
    assert grown("pyserve_predict_duration_seconds_sum", model=MODEL) > 0
    assert grown("pyserve_predict_batch_pictures_sum", model=MODEL) == 20
    batches = grown("pyserve_predict_batch_pictures_count", model=MODEL)
    assert batches >= 3
    assert grown("pyserve_predict_batch_pictures_bucket", model=MODEL, le="8.0") == batches
    reasons = ("full", "preferred", "shared", "delay", "deadline", "empty")
    closed = [grown("pyserve_predict_batches_total", model=MODEL, reason=reason) for reason in reasons]
    assert sum(closed) == batches
    assert closed[0] >= 1
    for stage in ("decode", "network"):
        assert grown("pyserve_predict_stage_seconds_total", model=MODEL, stage=stage) > 0
    assert value(after, "pyserve_predict_waiting_requests", model=MODEL) == 0
    assert value(after, "pyserve_model_memory_bytes", model=MODEL) > 10_000
    predict = {"method": "/pyserve.v1.Predict/Predict"}
    assert grown("pyserve_call_duration_seconds_count", **predict, code="OK") == 1
    assert grown("pyserve_call_duration_seconds_count", **predict, code="INVALID_ARGUMENT") == 1


def test_jobs_kernels_and_memory(server: ServerThread, stubs: Stubs, trained: jobs_pb2.Job) -> None:
    samples = scrape(server)
    finished = stubs.jobs.List(jobs_pb2.ListJobsRequest(states=[jobs_pb2.SUCCEEDED]), timeout=20)
    assert value(samples, "pyserve_jobs", state="SUCCEEDED") == len(finished.jobs) >= 1
    assert ("pyserve_jobs", (("state", "RUNNING"),)) in samples
    assert any(name == "pyserve_kernel_calls_total" and count > 0 for (name, _), count in samples.items())
    resident = value(samples, "process_resident_memory_bytes")
    assert value(samples, "pyserve_device_memory_used_bytes") == pytest.approx(resident, rel=0.2)
    assert value(samples, "pyserve_models_memory_budget_bytes") > resident


async def test_a_taken_port_is_told(tmp_path: Path, server: ServerThread) -> None:
    taken = server.server.metrics_port
    second = Server(Settings(data_dir=tmp_path, port=0, metrics_port=taken))
    with pytest.raises(UnavailableError, match=f"metrics_port: cannot listen on 127.0.0.1:{taken}: "):
        await second.start()


async def test_no_metrics_unless_asked_for_and_none_after_the_end(tmp_path: Path) -> None:
    silent = Server(Settings(data_dir=tmp_path / "a", port=0))
    await silent.start()
    assert silent.metrics_port is None
    await silent.stop(1)
    telling = Server(Settings(data_dir=tmp_path / "b", port=0, metrics_port=0))
    await telling.start()
    url = f"http://127.0.0.1:{telling.metrics_port}/metrics"
    await telling.stop(1)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)  # noqa: ASYNC210  # nothing else runs here
