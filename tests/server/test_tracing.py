"""Traces: what a small collector receives by OTLP has the right names, parents and facts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from pyserve.config import Settings, load
from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.server.app import Server
from pyserve.server.interceptors import REQUEST_ID_KEY
from pyserve.server.tracing import ENVIRONMENT, tracing_of
from pyserve.v1 import jobs_pb2, models_pb2, predict_pb2
from tests.server.conftest import ServerThread
from tests.server.support import png

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)
UNSEEN = "pyserve_never-to-be-seen"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC names it
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(None).wait()

    @property
    def spans(self) -> list[trace_pb2.Span]:
        resources = [r for request in self.requests for r in request.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


def facts(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def named(spans: list[trace_pb2.Span], name: str) -> trace_pb2.Span:
    [found] = [span for span in spans if span.name == name]
    return found


def within(spans: list[trace_pb2.Span], parent: trace_pb2.Span) -> dict[str, trace_pb2.Span]:
    """Its children by name, each inside its time."""
    children = {span.name: span for span in spans if span.parent_span_id == parent.span_id}
    for child in children.values():
        assert child.trace_id == parent.trace_id
        assert parent.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= parent.end_time_unix_nano + 1_000_000  # two clocks
    return children


def traced(folder: Path, collector: Collector, archive: bytes) -> ServerThread:
    """A server that sends its traces, with the dataset "datasets/colours"."""
    settings = Settings(
        data_dir=folder / "data",
        port=0,
        job_threads=1,
        predict_threads=1,
        job_nice=0,
        otlp_endpoint=collector.endpoint,
    )
    server = ServerThread(settings)
    server.stubs.upload(archive, "colours")
    return server


class Traced(NamedTuple):
    """What a traced server was asked, and what the collector got."""

    collector: Collector
    job: jobs_pb2.Job
    predict_request_id: str
    data_dir: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, archive: bytes) -> Iterator[Traced]:
    """A training, a prediction, a call that fails, and a health check, three of them of one caller's trace."""
    folder, collector = tmp_path_factory.mktemp("traced"), Collector()
    server = traced(folder, collector, archive)
    try:
        stubs = server.stubs
        spec = jobs_pb2.TrainSpec(dataset="datasets/colours", architecture="smallnet", image_size=16, batch_size=8)
        spec.epochs, spec.learning_rate, spec.device, spec.model_id = 2, 0.01, "cpu", "colours"
        job = stubs.jobs.Train(jobs_pb2.TrainRequest(train=spec), timeout=20, metadata=TRACEPARENT)
        job = stubs.wait(job)
        assert job.state == jobs_pb2.SUCCEEDED, job.reason
        request = predict_pb2.PredictRequest(model="models/colours")
        request.images.data.extend(png(i % 3, i) for i in range(4))
        metadata = (*TRACEPARENT, ("authorization", f"Bearer {UNSEEN}"))
        _, call = stubs.predict.Predict.with_call(request, timeout=20, metadata=metadata)
        with pytest.raises(grpc.RpcError):
            stubs.models.Get(models_pb2.GetModelRequest(name="models/nobody-s"), timeout=20)
        health_pb2_grpc.HealthStub(stubs.channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    finally:
        server.stop()
    yield Traced(collector, job, dict(call.trailing_metadata())[REQUEST_ID_KEY], folder)
    collector.stop()


def test_spans_of_a_prediction(run: Traced) -> None:
    spans = run.collector.spans
    predicted = named(spans, "pyserve.v1.Predict/Predict")
    assert (predicted.trace_id.hex(), predicted.parent_span_id.hex()) == (TRACE, CALLER)
    assert predicted.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert facts(predicted.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "pyserve.v1.Predict/Predict",
        "rpc.response.status_code": "OK",
        "pyserve.request_id": run.predict_request_id,
    }
    stages = within(spans, predicted)
    assert set(stages) == {"load", "queue", "decode", "compute"}
    assert facts(stages["decode"].attributes) == {
        "pyserve.model": "models/colours/versions/1",
        "pyserve.pictures": 4,
    }
    assert facts(stages["compute"].attributes)["pyserve.batch_size"] == 4
    assert stages["queue"].end_time_unix_nano <= stages["decode"].start_time_unix_nano + 1000
    assert stages["decode"].end_time_unix_nano <= stages["compute"].start_time_unix_nano + 1000


def test_the_span_of_a_call_that_fails(run: Traced) -> None:
    refused = named(run.collector.spans, "pyserve.v1.Models/Get")
    assert not refused.parent_span_id
    assert facts(refused.attributes)["rpc.response.status_code"] == "NOT_FOUND"
    assert facts(refused.attributes)["error.type"] == "NOT_FOUND"
    assert refused.status.code == trace_pb2.Status.STATUS_CODE_UNSET  # the caller's fault, not the server's


def test_spans_of_a_job(run: Traced) -> None:
    spans = run.collector.spans
    trained, submitted = named(spans, "job train"), named(spans, "pyserve.v1.Jobs/Train")
    assert (trained.trace_id.hex(), trained.parent_span_id) == (TRACE, submitted.span_id)
    told = {"pyserve.job": run.job.name, "pyserve.attempt": 1, "pyserve.job_state": "SUCCEEDED"}
    assert facts(trained.attributes) == told
    parts = within(spans, trained)
    [phase] = [span for name, span in parts.items() if name.startswith("phase ")]
    assert "queue" in parts
    assert facts(phase.attributes)["pyserve.epochs"] == 2
    epochs = [facts(event.attributes) for event in phase.events]
    assert [epoch["pyserve.epoch"] for epoch in epochs] == [1, 2]
    assert 0 <= epochs[1]["pyserve.accuracy"] <= 1


def test_what_a_client_sends_is_in_no_span(run: Traced) -> None:
    everything = b"".join(r.SerializeToString() for r in run.collector.requests)
    assert UNSEEN.encode() not in everything
    assert str(run.data_dir).encode() not in everything
    assert b"grpc.health" not in everything
    resource = facts(run.collector.requests[0].resource_spans[0].resource.attributes)
    assert resource["service.name"] == "pyserve"


def test_the_environment_of_opentelemetry_counts(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    server = ServerThread(Settings(data_dir=tmp_path / "data", port=0, predict_threads=1))
    try:
        server.stubs.models.List(models_pb2.ListModelsRequest(), timeout=20)
    finally:
        server.stop()
    assert [span.name for span in collector.spans] == ["pyserve.v1.Models/List"]
    assert facts(collector.requests[0].resource_spans[0].resource.attributes)["service.name"] == "ours"


@pytest.mark.timeout(100)
def test_a_collector_that_is_not_there_holds_up_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", port=0, predict_threads=1, otlp_endpoint="http://127.0.0.1:9")
    server = ServerThread(settings)
    server.stubs.models.List(models_pb2.ListModelsRequest(), timeout=20)
    server.stop()


def test_without_an_endpoint_nothing_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert tracing_of(Settings(data_dir=tmp_path)) is None
    with pytest.raises(InvalidArgumentError, match="otlp_endpoint: got 'collector:4317'"):
        load(otlp_endpoint="collector:4317")


def test_a_missing_package_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FailedPreconditionError) as info:
        Server(Settings(data_dir=tmp_path / "data", otlp_endpoint="http://127.0.0.1:9"))
    assert info.value.message == (
        "otlp_endpoint: traces take OpenTelemetry, which is not installed: pip install 'pyserve[tracing]'"
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing_of(Settings(data_dir=tmp_path)) is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, but traces take OpenTelemetry" in caplog.text
