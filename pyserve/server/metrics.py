"""What Prometheus is told, on a port of its own: calls, predictions and their batches, models, jobs, kernels.

Nothing is counted here but calls; the rest is read, when Prometheus asks, from where it is counted anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from pyserve import kernels
from pyserve.errors import UnavailableError
from pyserve.inference import memory
from pyserve.inference.statistics import SECONDS_BOUNDS, Figures

if TYPE_CHECKING:
    from pyserve.inference.batcher import Batcher
    from pyserve.inference.loaded_models import LoadedModels
    from pyserve.inference.predictor import Predictor
    from pyserve.jobs.store import JobStore

_BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Metrics:
    """The registry of one server, and its HTTP endpoint."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._calls = Histogram(
            "pyserve_call_duration_seconds",
            "Calls from their arrival to their end, by method and gRPC status.",
            ("method", "code"),
            buckets=SECONDS_BOUNDS,
            registry=self._registry,
        )
        self._stop: Callable[[], None] | None = None

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """Count a call."""
        self._calls.labels(method, code).observe(seconds)

    def add(self, models: LoadedModels, batcher: Batcher, store: JobStore) -> None:
        """Tell of these as well."""
        for collector in (_Predictions(models, batcher), _Jobs(store), _Kernels()):
            self._registry.register(collector)

    def start(self, host: str, port: int) -> int:
        """Answer Prometheus.

        Returns:
            The port; 0 takes a free one.

        Raises:
            UnavailableError: the address cannot be listened on.
        """
        try:
            server, thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise UnavailableError(f"metrics_port: cannot listen on {host}:{port}: {error.strerror}") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop
        return int(server.server_address[1])

    def stop(self) -> None:
        """End the endpoint, if there is one."""
        if self._stop is not None:
            self._stop()
            self._stop = None


class _Predictions:
    """Models in memory and what they did since they were loaded."""

    def __init__(self, models: LoadedModels, batcher: Batcher) -> None:
        self._models = models
        self._batcher = batcher

    def describe(self) -> list[Metric]:
        """None yet: models come and go."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        predictors = self._models.loaded()
        figures = {p.name: p.statistics.snapshot() for p in predictors}
        yield from _request_families(figures)
        yield from _batch_families(figures)
        yield from self._queue_families(predictors)
        held = GaugeMetricFamily(
            "pyserve_model_memory_bytes", "Memory of a model on its device.", labels=["model"]
        )
        for predictor in predictors:
            held.add_metric([predictor.name], predictor.bundle.memory_bytes)
        yield held
        yield GaugeMetricFamily(
            "pyserve_models_memory_budget_bytes", "Memory that models may take.", self._models.budget_bytes
        )
        yield GaugeMetricFamily(
            "pyserve_device_memory_used_bytes",
            "Memory of the device that models run on, held by this process.",
            memory.used_bytes(self._models.device),
        )

    def _queue_families(self, predictors: Sequence[Predictor]) -> Iterator[Metric]:
        requests = GaugeMetricFamily(
            "pyserve_predict_waiting_requests", "Requests without an answer yet.", labels=["model"]
        )
        pictures = GaugeMetricFamily(
            "pyserve_predict_waiting_pictures", "Pictures without an answer yet.", labels=["model"]
        )
        for predictor in predictors:
            waiting, waiting_pictures = self._batcher.unanswered(predictor)
            requests.add_metric([predictor.name], waiting)
            pictures.add_metric([predictor.name], waiting_pictures)
        yield requests
        yield pictures


def _request_families(figures: dict[str, Figures]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "pyserve_predict_requests", "Requests for predictions.", labels=["model", "outcome"]
    )
    latency = HistogramMetricFamily(
        "pyserve_predict_duration_seconds", "Answered requests, from arrival to answer.", labels=["model"]
    )
    stages = CounterMetricFamily(
        "pyserve_predict_stage_seconds",
        "Time of requests waiting, of pictures being decoded, of batches in the network.",
        labels=["model", "stage"],
    )
    for name, figure in figures.items():
        requests.add_metric([name, "answered"], figure.success.count)
        requests.add_metric([name, "failed"], figure.failure.count)
        latency.add_metric([name], figure.latency.cumulative(), figure.latency.total)
        stages.add_metric([name, "wait"], figure.queue.seconds)
        stages.add_metric([name, "decode"], figure.decode.seconds)
        stages.add_metric([name, "network"], figure.passes.seconds)
    yield requests
    yield latency
    yield stages


def _batch_families(figures: dict[str, Figures]) -> Iterator[Metric]:
    sizes = HistogramMetricFamily("pyserve_predict_batch_pictures", "Pictures in a batch.", labels=["model"])
    closed = CounterMetricFamily(
        "pyserve_predict_batches", "Batches, by why they were closed at their size.", labels=["model", "reason"]
    )
    for name, figure in figures.items():
        counts = [
            (str(bound), sum(total.count for size, total in figure.batches.items() if size <= bound))
            for bound in _BATCH_BOUNDS
        ]
        sizes.add_metric([name], [*counts, ("+Inf", figure.passes.count)], figure.pictures)
        for reason, total in figure.closed.items():
            closed.add_metric([name, reason], total.count)
    yield sizes
    yield closed


class _Jobs:
    """How many jobs there are in each state."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """The family."""
        jobs = GaugeMetricFamily("pyserve_jobs", "Jobs by state.", labels=["state"])
        for state, count in self._store.counts().items():
            jobs.add_metric([state.value], count)
        yield jobs


class _Kernels:
    """What our kernels ran, and what went to ATen instead."""

    def collect(self) -> Iterator[Metric]:
        """Both families."""
        info = kernels.info()
        calls = CounterMetricFamily("pyserve_kernel_calls", "Calls of a kernel variant.", labels=["variant"])
        for variant, count in info.calls.items():
            calls.add_metric([variant], count)
        yield calls
        fallbacks = CounterMetricFamily(
            "pyserve_kernel_fallbacks", "Calls that went to ATen.", labels=["op", "reason"]
        )
        for key, count in info.fallbacks.items():
            op, _, reason = key.partition(": ")
            fallbacks.add_metric([op, reason], count)
        yield fallbacks
