"""`pyserve.v1.Jobs`: starts, follows and stops long work."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from pyserve import models
from pyserve.data.catalog import Catalog
from pyserve.errors import DataLossError, FailedPreconditionError, NotFoundError, PyserveError
from pyserve.inference.model_store import ModelStore
from pyserve.jobs.paths import artifacts_folder
from pyserve.jobs.records import JobRecord
from pyserve.jobs.scheduler import Scheduler
from pyserve.jobs.store import JobStore
from pyserve.jobs.tensorboard import EventFile
from pyserve.server import convert, validate
from pyserve.server.job_traces import JobTraces
from pyserve.server.pools import Pools
from pyserve.spec import JobSpec, TrainSpec
from pyserve.v1 import common_pb2, jobs_pb2, jobs_pb2_grpc

log = logging.getLogger(__name__)


class JobsService(jobs_pb2_grpc.JobsServicer):
    """Jobs over gRPC.

    Args:
        scheduler: runs the jobs.
        store: the scheduler's jobs.
        catalog: the datasets that jobs may name.
        model_store: the models whose weights jobs may name.
        pools: threads for blocking work.
        data_dir: where jobs keep their files.
        weights_roots: folders of the weights that jobs may name.
        traces: is told which call queued a job; None for no traces.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        store: JobStore,
        catalog: Catalog,
        model_store: ModelStore,
        pools: Pools,
        data_dir: Path,
        weights_roots: list[Path],
        traces: JobTraces | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._catalog = catalog
        self._models = model_store
        self._pools = pools
        self._data_dir = data_dir
        self._weights_roots = weights_roots
        self._traces = traces

    async def Train(self, request: jobs_pb2.TrainRequest, context: Any) -> jobs_pb2.Job:
        """Queue a training."""
        spec = convert.train_spec(request.train)
        return await self._submit(spec, spec, "train", request.request_id)

    async def FindLearningRate(self, request: jobs_pb2.FindLearningRateRequest, context: Any) -> jobs_pb2.Job:
        """Queue a range test."""
        spec = convert.find_learning_rate_spec(request.find_learning_rate)
        return await self._submit(spec, spec.training, "find_learning_rate.training", request.request_id)

    async def Get(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.Job:
        """One job."""
        name = validate.job_name(request.name)
        return convert.job(await self._pools.quick.run(self._store.get, name))

    async def List(self, request: jobs_pb2.ListJobsRequest, context: Any) -> jobs_pb2.ListJobsResponse:
        """A page of jobs."""
        states = convert.job_states(request.states)
        records, token = await self._pools.quick.run(
            self._store.list, request.page_size, request.page_token, states
        )
        return jobs_pb2.ListJobsResponse(jobs=[convert.job(r) for r in records], next_page_token=token)

    async def Watch(self, request: jobs_pb2.WatchRequest, context: Any) -> AsyncIterator[jobs_pb2.Event]:
        """The job's events, first those that were."""
        name = validate.job_name(request.name)
        left_early = request.cancel_on_disconnect
        try:
            async with aclosing(self._scheduler.watch(name, request.from_seq)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield convert.event(event)
            left_early = False
        except PyserveError:  # the server's doing, not the watcher's
            left_early = False
            raise
        finally:
            if left_early:
                await self._cancel_abandoned(name)

    async def Cancel(self, request: jobs_pb2.CancelJobRequest, context: Any) -> jobs_pb2.Job:
        """Ask a job to stop."""
        return convert.job(await self._scheduler.cancel(validate.job_name(request.name)))

    async def Resume(self, request: jobs_pb2.ResumeJobRequest, context: Any) -> jobs_pb2.Job:
        """Queue an interrupted job again."""
        return self._queued(await self._scheduler.resume(validate.job_name(request.name)))

    async def Delete(self, request: jobs_pb2.DeleteJobRequest, context: Any) -> Empty:
        """Remove a job that has ended."""
        await self._scheduler.delete(validate.job_name(request.name))
        return Empty()

    async def GetArtifact(self, request: jobs_pb2.GetArtifactRequest, context: Any) -> common_pb2.Figure:
        """A file that a job made."""
        job, file = validate.artifact_name(request.name)
        return await self._pools.quick.run(self._artifact, job, file)

    async def TensorBoard(
        self, request: jobs_pb2.TensorBoardRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.TensorBoardChunk]:
        """The job's log as an event file."""
        name = validate.job_name(request.name)
        record = await self._pools.quick.run(self._store.get, name)
        file = EventFile(record, lambda artifact: self._read(name, artifact))
        yield jobs_pb2.TensorBoardChunk(data=file.header())
        async with aclosing(self._scheduler.watch(name)) as events:  # type: ignore[type-var]
            async for event in events:
                data = await self._pools.quick.run(file.of, event)
                if data:
                    yield jobs_pb2.TensorBoardChunk(data=data)
                if event.seq >= record.last_seq and not request.follow:
                    return

    async def _submit(self, spec: JobSpec, training: TrainSpec, prefix: str, request_id: str) -> jobs_pb2.Job:
        request_id = validate.request_id(request_id)
        await self._pools.quick.run(self._check, training, prefix)
        return self._queued(await self._scheduler.submit(spec, request_id))

    def _queued(self, record: JobRecord) -> jobs_pb2.Job:
        if self._traces is not None:
            self._traces.queued(record.name)
        return convert.job(record)

    def _check(self, training: TrainSpec, prefix: str) -> None:
        """Refuse now what would fail as soon as a worker begins."""
        self._catalog.get(training.dataset)
        try:
            architecture = models.get_architecture(training.architecture)
            training.image_size_or(architecture.image_size, architecture.least_image_size)
            if training.weights == "imagenet":
                models.require_imagenet(training.architecture)
            elif training.weights.startswith("models/"):
                self._models.get(training.weights)
            elif training.weights:
                models.find_weights(training.weights, self._weights_roots)
        except PyserveError as error:
            raise error.under(prefix) from None

    async def _cancel_abandoned(self, name: str) -> None:
        """Cancel a job whose watcher has left; one that ended meanwhile stays as it is."""
        try:
            await self._scheduler.cancel(name)
            log.info("%s is cancelled: its watcher is gone", name)
        except FailedPreconditionError:
            pass

    def _artifact(self, job: str, file: str) -> common_pb2.Figure:
        record = self._store.get(job)
        known = {artifact.name: artifact for artifact in record.artifacts}
        if file not in known:
            there = f"there are {', '.join(sorted(known))}" if known else "it has made none so far"
            raise NotFoundError(f"{job} has no artifact {file}; {there}")
        data = self._read(job, file)
        if data is None:
            raise DataLossError(f"{job}: artifact {file} cannot be read any more")
        return common_pb2.Figure(name=file, media_type=known[file].media_type, data=data)

    def _read(self, job: str, file: str) -> bytes | None:
        """A file that a job made; None, and a line in the server's log, where it cannot be read."""
        try:
            return (artifacts_folder(self._data_dir, job) / file).read_bytes()
        except OSError:
            log.exception("%s: artifact %s cannot be read", job, file)
            return None
