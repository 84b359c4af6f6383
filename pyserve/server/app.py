"""The server: puts stores, services and health together, starts them, and drains them in the right order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sqlite3
from collections.abc import Callable

import grpc
import torch
import uvloop
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pyserve.addresses import address_of
from pyserve.config import Settings
from pyserve.data.catalog import Catalog
from pyserve.errors import PyserveError, UnavailableError
from pyserve.inference.backlog import Policy
from pyserve.inference.batcher import Batcher
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_store import ModelStore
from pyserve.jobs.data_lock import make_data_dir
from pyserve.jobs.paths import CACHE_FOLDER, STORE_FILE
from pyserve.jobs.runner import LocalRunner
from pyserve.jobs.scheduler import Scheduler
from pyserve.jobs.store import JobStore
from pyserve.open_inference import grpc_service_pb2_grpc
from pyserve.security.audit import AuditLog
from pyserve.security.limits import CallLimits
from pyserve.server import listening, logs
from pyserve.server.gate import Gate
from pyserve.server.given_model import take_given
from pyserve.server.health import Health
from pyserve.server.interceptors import CallInterceptor
from pyserve.server.job_traces import JobTraces
from pyserve.server.ledger import RequestLedger
from pyserve.server.metrics import Metrics
from pyserve.server.pools import Pools
from pyserve.server.prediction import Prediction
from pyserve.server.reflection import descriptor_pool
from pyserve.server.retention import Retention
from pyserve.server.services.datasets import DatasetsService
from pyserve.server.services.insight import InsightService, Looker
from pyserve.server.services.jobs import JobsService
from pyserve.server.services.models import ModelsService
from pyserve.server.services.open_inference import SERVICE as OPEN_INFERENCE
from pyserve.server.services.open_inference import OpenInferenceService
from pyserve.server.services.predict import PredictService
from pyserve.server.status import StatusTeller
from pyserve.server.tracing import tracing_of
from pyserve.server.uploads import Uploads
from pyserve.v1 import datasets_pb2_grpc, insight_pb2_grpc, jobs_pb2_grpc, models_pb2_grpc, predict_pb2_grpc

log = logging.getLogger(__name__)

SERVICES = (
    *(f"pyserve.v1.{name}" for name in ("Datasets", "Jobs", "Predict", "Models", "Insight")),
    OPEN_INFERENCE,
)
_CLEAN_INTERVAL_S = 600.0
_HANDSHAKE_TIMEOUT_MS = 20_000


class Server:
    """A server with its stores: made, started once, stopped once.

    Args:
        settings: all of them; `data_dir` is made if missing.

    Raises:
        InvalidArgumentError: an address is beyond loopback, TLS or tokens are missing, and `insecure` is not set.
        DataLossError, FailedPreconditionError: tokens, certificates or audit log cannot be used.

    Attributes:
        metrics_port: on which Prometheus is answered, once started; None for none.
    """

    metrics_port: int | None = None
    _retention: Retention

    def __init__(self, settings: Settings) -> None:
        tokens = listening.tokens_in_force(settings)
        self._certificates = listening.certificates(settings)
        listening.check_listening(settings, tokens, self._certificates)
        self._settings = settings
        self._data_dir = data_dir = settings.data_dir.resolve()
        make_data_dir(data_dir)
        self._pools = Pools(max_waiting=settings.max_waiting_calls)
        self._store = JobStore(data_dir / STORE_FILE, check=True)
        self._tracing = tracing_of(settings)
        self._job_traces = None if self._tracing is None else JobTraces(self._tracing, self._store)
        on_end = None if self._job_traces is None else self._job_traces.ended
        self._scheduler = Scheduler(self._store, LocalRunner(), settings, on_end=on_end)
        self._ledger = RequestLedger(data_dir / "uploads", settings.upload_ttl_s)
        self._uploads = Uploads(self._ledger, settings.max_archive_bytes)
        self._statuses = StatusTeller([data_dir])
        self._metrics = Metrics()
        self._interceptor = CallInterceptor(self._statuses, self._metrics.call_ended, self._tracing)
        self._batcher: Batcher | None = None
        self._audit = AuditLog(settings.audit_log, settings.audit_log_bytes) if settings.audit_log else None
        self._gate = Gate(
            tokens,
            CallLimits(settings.max_calls_per_s, settings.max_calls_at_once),
            self._audit,
            audit_predictions=settings.audit_predictions,
            open_reflection=settings.reflection == "open",
        )
        self._health = Health(SERVICES)
        self._cleaner: asyncio.Task[None] | None = None
        self._grpc: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Take the data folder, listen, and answer calls.

        Returns:
            The port.

        Raises:
            FailedPreconditionError: another server uses the data folder.
            UnavailableError: the address cannot be listened on.
        """
        torch.set_num_threads(_predict_threads(self._settings))
        await self._scheduler.start()
        self._uploads.remove_leftovers()
        interceptors = [self._interceptor, self._gate]
        server = grpc.aio.server(interceptors=interceptors, options=_channel_options(self._settings))
        self._add_services(server)
        await self._take_given()
        port = await self._listen(server)
        await self._start_metrics()
        await server.start()
        self._grpc = server
        self._cleaner = asyncio.create_task(self._clean_up())
        gc.collect()
        gc.freeze()  # what is there now stays: collections need not look at it again and again
        await self._health.set_serving(True)
        return port

    async def stop(self, grace_s: float) -> None:
        """Drain: NOT_SERVING first, then calls finish and jobs stop at a checkpoint, for `grace_s` at most."""
        await self._health.set_serving(False)
        await self._health.close()
        if self._cleaner is not None:
            self._cleaner.cancel()
        await asyncio.gather(self._drain_calls(grace_s), self._scheduler.drain(grace_s))
        if self._batcher is not None:
            await asyncio.to_thread(self._batcher.close)
        await asyncio.to_thread(self._metrics.stop)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._pools.close()
        self._store.close()
        if self._audit is not None:
            self._audit.close()

    async def _take_given(self) -> None:
        try:
            await asyncio.to_thread(take_given, self._settings, self._model_store, self._models)
        except PyserveError:
            await self.stop(0)
            raise

    async def _listen(self, server: grpc.aio.Server) -> int:
        address = address_of(self._settings.host, self._settings.port)
        try:
            if self._certificates is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, self._certificates.credentials())
        except RuntimeError as error:
            await self.stop(0)
            raise UnavailableError(f"cannot listen on {address}: is another server there?") from error

    def _add_services(self, server: grpc.aio.Server) -> None:
        settings, pools = self._settings, self._pools
        catalog = Catalog(self._data_dir, settings)
        model_store = self._model_store = ModelStore(self._data_dir)
        models = self._models = LoadedModels(model_store, settings)
        self._batcher = _batcher(settings, models)
        self._retention = Retention(self._store, self._scheduler, model_store, models, settings)
        self._metrics.add(models, self._batcher, self._store)
        prediction = Prediction(models, self._batcher, pools, settings, self._tracing)
        datasets_pb2_grpc.add_DatasetsServicer_to_server(
            DatasetsService(catalog, self._uploads, self._ledger, pools, self._store.users_of), server
        )
        jobs_pb2_grpc.add_JobsServicer_to_server(
            JobsService(
                self._scheduler,
                self._store,
                catalog,
                model_store,
                pools,
                self._data_dir,
                settings.weights_roots,
                self._job_traces,
            ),
            server,
        )
        predict_pb2_grpc.add_PredictServicer_to_server(PredictService(prediction, pools, self._statuses), server)
        models_pb2_grpc.add_ModelsServicer_to_server(
            ModelsService(model_store, models, self._uploads, pools, self._store.users_of), server
        )
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceService(prediction, model_store, pools, self._statuses, lambda: self._health.is_serving),
            server,
        )
        insight_pb2_grpc.add_InsightServicer_to_server(
            InsightService(
                Looker(models, model_store, catalog, self._data_dir / CACHE_FOLDER, settings.max_image_pixels),
                pools,
                self._ledger,
                self._store,
                self._data_dir,
                settings.max_message_bytes,
            ),
            server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection != "off":
            names = (*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server, pool=descriptor_pool(names))

    async def _start_metrics(self) -> None:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        if port is None:
            return
        try:
            self.metrics_port = self._metrics.start(host, port)
        except UnavailableError:
            await self.stop(0)
            raise
        log.info("metrics on http://%s:%d/metrics", host, self.metrics_port)

    async def _drain_calls(self, grace_s: float) -> None:
        """Refuse new calls, wait until the running ones have ended or the time is over, and cancel the rest."""
        if self._grpc is None:
            return
        stopping = asyncio.create_task(self._grpc.stop(grace_s))
        idle = asyncio.create_task(self._interceptor.wait_idle())
        await asyncio.wait((stopping, idle), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await self._grpc.stop(None)
        await stopping

    async def _clean_up(self) -> None:
        """Now and then remove what nobody needs any more; a round that fails is told, and tried again."""
        while True:
            try:
                await self._pools.slow.run(self._uploads.clean)
                await self._retention.apply()
            except (PyserveError, OSError, sqlite3.Error) as error:
                log.warning("cleaning up: %s", error)
            await asyncio.sleep(min(_CLEAN_INTERVAL_S, self._settings.upload_ttl_s))


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Run a server until SIGTERM or SIGINT (Ctrl-C), then drain it; a second Ctrl-C ends the drain.

    Args:
        on_ready: called with the address, "host:port", once calls are answered.

    Raises:
        PyserveError: see `Server` and `Server.start`.
    """
    logs.set_up(settings.log_level, settings.log_format)
    uvloop.run(_serve(settings, on_ready))  # a quarter less processor time for each call


async def _serve(settings: Settings, on_ready: Callable[[str], None] | None) -> None:
    server = Server(settings)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def interrupt() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    port = await server.start()
    address = address_of(settings.host, port)
    log.info("listens on %s, data in %s", address, settings.data_dir.resolve())
    if on_ready is not None:
        on_ready(address)
    await stop.wait()
    log.info("drains for at most %g s; Ctrl-C ends at once", settings.drain_s)
    draining = asyncio.create_task(server.stop(settings.drain_s))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        hurrying.cancel()
        await draining
        return
    log.warning(
        "Ctrl-C while draining: ends without waiting; running jobs are INTERRUPTED at their last checkpoint"
    )
    os._exit(1)  # workers end with this process


def _predict_threads(settings: Settings) -> int:
    return settings.predict_threads or len(os.sched_getaffinity(0))


def _batcher(settings: Settings, models: LoadedModels) -> Batcher:
    """One for the device that models run on: as many lanes as cores on a CPU, one on a GPU."""
    on_cpu, threads = models.device.type == "cpu", _predict_threads(settings)
    policy = Policy(
        max_batch_size=models.max_batch_size,
        preferred_sizes=tuple(settings.preferred_batch_sizes),
        max_delay_s=settings.max_queue_delay_s,
        lanes=threads if on_cpu else 1,
    )
    return Batcher(
        policy,
        threads=threads,
        max_requests=settings.max_waiting_calls,
        max_bytes=settings.max_queued_bytes,
        on_cpu=on_cpu,
    )


def _channel_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.so_reuseport", 0),  # a second server on the same port is told so
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),  # what is no gRPC leaves soon
        # Watchers of a quiet job keep their connection alive with pings.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
