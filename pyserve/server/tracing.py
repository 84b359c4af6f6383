"""OpenTelemetry traces of calls and predictions, sent by OTLP where an endpoint is configured.

Nothing of OpenTelemetry is imported, and nothing measured, where none is. Spans carry names, numbers and states,
never what a client sent: no metadata, no pictures, no sentences of errors.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pyserve.config import Settings
from pyserve.errors import FailedPreconditionError
from pyserve.inference.work import Stages

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

ENVIRONMENT = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FLUSH_MS = 3000  # at the end, where the collector does not answer
_NS = 1_000_000_000
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")  # asked by machines, many times a minute
# What a server is to blame for, by the conventions for its spans; the rest is the caller's.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

Attribute = str | int | float


def tracing_of(settings: Settings) -> Tracing | None:
    """What records traces; None where no endpoint is configured.

    Raises:
        FailedPreconditionError: `otlp_endpoint` is set and OpenTelemetry is not installed. Where the endpoint
            comes from OpenTelemetry's own environment, which may be meant for others, that is logged only.
    """
    named = [name for name in ENVIRONMENT if os.environ.get(name)]
    if not settings.otlp_endpoint and not named:
        return None
    if not _installed("opentelemetry.sdk") or not _installed("opentelemetry.exporter.otlp.proto.grpc"):
        sentence = "traces take OpenTelemetry, which is not installed: pip install 'pyserve[tracing]'"
        if settings.otlp_endpoint:
            raise FailedPreconditionError(f"otlp_endpoint: {sentence}")
        log.warning("%s is set, but %s", named[0], sentence)
        return None
    return Tracing(_provider(settings.otlp_endpoint or None))


class Tracing:
    """Records spans; its methods may be called from any thread.

    Args:
        provider: where they go; closed by `close`.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api, self._context = trace, context
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("pyserve", version("pyserve"))

    def call(self, method: str, request_id: str, metadata: Any) -> Span | None:
        """Begin the span of a call, which is then the current one of the task that it runs in; None for no trace.

        Args:
            method: "/pyserve.v1.Predict/Predict".
            request_id: as in logs and answers.
            metadata: of the call; of it "traceparent" and "tracestate" count.
        """
        if method.startswith(_UNTRACED):
            return None
        name = method.removeprefix("/")
        carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(carrier, context=self._context.Context()),
            kind=self._api.SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": name, "pyserve.request_id": request_id},
        )
        self._context.attach(self._api.set_span_in_context(span))  # the task's own: nothing to detach
        return span

    def call_ended(self, span: Span, code: str) -> None:
        """End the span of a call with the name of its status."""
        span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            span.set_attribute("error.type", code)
            if code in _FAULTS:
                span.set_status(self._api.StatusCode.ERROR)
        span.end()

    @contextmanager
    def span(self, name: str, **attributes: Attribute) -> Iterator[None]:
        """A child of the current span around a block."""
        begin = time.time_ns()
        try:
            yield
        finally:
            self.add(name, begin, time.time_ns(), attributes=attributes)

    def add(
        self,
        name: str,
        begin_ns: int,
        end_ns: int,
        *,
        parent: Context | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        events: Iterable[tuple[str, int, Mapping[str, Attribute]]] = (),
    ) -> Context:
        """A span that is over.

        Args:
            begin_ns, end_ns: since the epoch.
            parent: what it belongs to; None for the current span.
            attributes: of the span.
            events: in it: name, time, attributes.

        Returns:
            The parent for spans inside it.
        """
        span = self._tracer.start_span(name, context=parent, start_time=begin_ns, attributes=attributes)
        for event, time_ns, facts in events:
            span.add_event(event, facts, time_ns)
        span.end(end_ns)
        return self._api.set_span_in_context(span, self._context.Context())

    def current(self) -> Context:
        """The current span, as a parent for later."""
        return self._api.set_span_in_context(self._api.get_current_span(), self._context.Context())

    def nobody(self) -> Context:
        """The parent of what begins a trace."""
        return self._context.Context()

    def prediction(self, model: str, stages: Stages) -> None:
        """Children of the current span for what happened to a request: it waited, was decoded, and computed.

        Args:
            model: its name, with the version.
            stages: when that was.
        """
        offset_ns = time.time_ns() - time.monotonic_ns()

        def add(name: str, begin: float, end: float, **attributes: Attribute) -> None:
            start, stop = (int(seconds * _NS) + offset_ns for seconds in (begin, end))
            self.add(name, start, stop, attributes={"pyserve.model": model, **attributes})

        decoded, passes = list(stages.decoded), list(stages.passes)
        begun = min([begin for begin, *_ in (*decoded, *passes)], default=time.monotonic())
        add("queue", stages.arrival, begun)
        if decoded:
            first, last = min(begin for begin, _ in decoded), max(end for _, end in decoded)
            add("decode", first, last, **{"pyserve.pictures": len(decoded)})
        for begin, end, pictures in passes:
            add("compute", begin, end, **{"pyserve.batch_size": pictures})

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


def _provider(endpoint: str | None) -> TracerProvider:
    """By OTLP over gRPC; what the setting leaves open comes from OpenTelemetry's own environment."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({SERVICE_VERSION: version("pyserve")})
    if not (
        os.environ.get("OTEL_SERVICE_NAME") or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    ):
        resource = resource.merge(Resource({SERVICE_NAME: "pyserve"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False
