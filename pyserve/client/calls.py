"""Every call of the client, written once over a transport."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from grpc_health.v1 import health_pb2

from pyserve.client import event_file
from pyserve.client.backoff import Backoff
from pyserve.client.calls_base import PAGE_SIZE, WORK_TIMEOUT_S
from pyserve.client.insight_calls import InsightCalls
from pyserve.client.model_calls import ModelCalls
from pyserve.client.requests import dataset_options, spec_message
from pyserve.client.transport import deadline_after, left_until
from pyserve.client.upload import Progress, send
from pyserve.errors import CancelledError, DataLossError, UnavailableError
from pyserve.v1 import (
    common_pb2,
    datasets_pb2,
    jobs_pb2,
)

BadImages = Literal["leave_out", "refuse"]


class Calls(ModelCalls, InsightCalls):
    """The methods of `Client` and `AsyncClient`. A `timeout_s` is the limit of a whole call, retries included.

    Args:
        transport: carries the calls.
        timeout_s: limit of calls that answer at once.
        retry_s: how long calls are tried again while the server is unavailable.
        reconnect_s: how long a watch or an upload that broke off tries to go on.
        hedge: second attempts of predictions; None for none.
    """

    # Datasets

    async def upload_dataset(
        self,
        path: str | Path,
        dataset_id: str,
        *,
        valid_fraction: float | None = None,
        seed: int | None = None,
        bad_images: BadImages = "leave_out",
        request_id: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> datasets_pb2.Dataset:
        """Send a folder of pictures, one sub-folder per class, or a zip or tar of one, and make a dataset of it.

        A folder is zipped into a temporary file first, hidden files left out. An upload that breaks off goes on
        where it stopped; with the same `request_id` even from another process.

        Args:
            path: the folder or archive.
            dataset_id: name part of the new dataset, as in "datasets/{dataset_id}".
            valid_fraction: part of each class kept for validation where the folder has no train/ and valid/.
            seed: of that split.
            bad_images: "leave_out" pictures that cannot be decoded, or "refuse" the dataset.
            request_id: a UUID; made where absent.
            progress: called with (bytes sent, bytes in all), in a thread of gRPC's.
        """
        options = dataset_options(valid_fraction, seed, bad_images)
        header = datasets_pb2.UploadHeader(
            dataset_id=dataset_id, request_id=request_id or str(uuid.uuid4()), options=options
        )
        deadline = deadline_after(timeout_s)
        backoff = Backoff(self._transport, self._retry_s, deadline)
        return await send(
            self._transport,
            Path(path),
            header,
            backoff=backoff,
            reconnect_s=self._reconnect_s,
            resume=bool(request_id),
            progress=progress,
            timeout_s=lambda: left_until(deadline),
        )

    async def register_dataset(
        self,
        path: str,
        dataset_id: str,
        *,
        valid_fraction: float | None = None,
        seed: int | None = None,
        bad_images: BadImages = "leave_out",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> datasets_pb2.Dataset:
        """Make a dataset of a folder that the server can read, under one of its `dataset_roots`."""
        request = datasets_pb2.RegisterRequest(
            request_id=request_id or str(uuid.uuid4()),
            dataset_id=dataset_id,
            path=path,
            options=dataset_options(valid_fraction, seed, bad_images),
        )
        return await self._call(self._stubs.datasets.Register, request, timeout_s or WORK_TIMEOUT_S)

    async def get_dataset(self, name: str, *, timeout_s: float | None = None) -> datasets_pb2.Dataset:
        """One dataset, "datasets/{id}"."""
        return await self._call(self._stubs.datasets.Get, datasets_pb2.GetDatasetRequest(name=name), timeout_s)

    async def get_picture(
        self, name: str, path: str, *, max_side: int | None = None, timeout_s: float | None = None
    ) -> common_pb2.Figure:
        """A JPEG of one picture of a dataset, to look at.

        Args:
            name: "datasets/{id}".
            path: the picture's, inside the dataset.
            max_side: pixels of its longer side at most, 16…2048; the server's default is 512.
        """
        request = datasets_pb2.GetPictureRequest(name=name, path=path, max_side=max_side)
        return await self._call(self._stubs.datasets.GetPicture, request, timeout_s)

    async def list_datasets(self, *, timeout_s: float | None = None) -> list[datasets_pb2.Dataset]:
        """All datasets, newest first."""
        request = datasets_pb2.ListDatasetsRequest(page_size=PAGE_SIZE)
        pages = self._pages(self._stubs.datasets.List, request, timeout_s)
        return [dataset async for page in pages for dataset in page.datasets]

    async def relabel_dataset(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        removed: Sequence[str] = (),
        dataset_id: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> datasets_pb2.Dataset:
        """Make a new version of a dataset from corrected labels; the old one stays as it is.

        Args:
            name: "datasets/{id}" whose labels are corrected.
            labels: path inside the dataset → right label.
            removed: paths of pictures that the new version leaves out.
            dataset_id: name part of the new version; default: the old one's with "-v{n}".
            request_id: a UUID; made where absent.
        """
        corrections = [datasets_pb2.CorrectLabel(path=path, label=label) for path, label in labels.items()]
        request = datasets_pb2.RelabelRequest(
            request_id=request_id or str(uuid.uuid4()),
            name=name,
            corrections=corrections,
            removed=removed,
            dataset_id=dataset_id,
        )
        return await self._call(self._stubs.datasets.Relabel, request, timeout_s or WORK_TIMEOUT_S)

    async def delete_dataset(self, name: str, *, timeout_s: float | None = None) -> None:
        """Remove a dataset that no unfinished job uses. Not tried again: a second try would not find it."""
        request = datasets_pb2.DeleteDatasetRequest(name=name)
        await self._call(self._stubs.datasets.Delete, request, timeout_s, repeatable=False)

    # Jobs

    async def train(
        self, /, *, dataset: str, request_id: str = "", timeout_s: float | None = None, **fields: Any
    ) -> jobs_pb2.Job:
        """Queue a training and return its job at once.

        Args:
            dataset: "datasets/{id}".
            request_id: a UUID; made where absent. The same one returns the first job.
            fields: of `pyserve.v1.TrainSpec`, which explains each; those that are None take the server's default.
        """
        spec = spec_message(jobs_pb2.TrainSpec, {"dataset": dataset, **fields}, "train")
        request = jobs_pb2.TrainRequest(request_id=request_id or str(uuid.uuid4()), train=spec)
        return await self._call(self._stubs.jobs.Train, request, timeout_s)

    async def find_learning_rate(
        self, /, *, dataset: str, request_id: str = "", timeout_s: float | None = None, **fields: Any
    ) -> jobs_pb2.Job:
        """Queue a learning-rate range test and return its job at once.

        Args:
            dataset: "datasets/{id}".
            request_id: a UUID; made where absent. The same one returns the first job.
            fields: of `pyserve.v1.FindLearningRateSpec` (`start_lr`, `steps`, …) and of `TrainSpec`
                (`architecture`, `batch_size`, …), which explain each.
        """
        own = set(jobs_pb2.FindLearningRateSpec.DESCRIPTOR.fields_by_name) - {"training"}
        training = {name: value for name, value in fields.items() if name not in own}
        prefix = "find_learning_rate"
        spec = spec_message(jobs_pb2.FindLearningRateSpec, {n: v for n, v in fields.items() if n in own}, prefix)
        values = {"dataset": dataset, **training}
        spec.training.CopyFrom(spec_message(jobs_pb2.TrainSpec, values, f"{prefix}.training"))
        request = jobs_pb2.FindLearningRateRequest(
            request_id=request_id or str(uuid.uuid4()), find_learning_rate=spec
        )
        return await self._call(self._stubs.jobs.FindLearningRate, request, timeout_s)

    async def get_job(self, name: str, *, timeout_s: float | None = None) -> jobs_pb2.Job:
        """One job, "jobs/{id}"."""
        return await self._call(self._stubs.jobs.Get, jobs_pb2.GetJobRequest(name=name), timeout_s)

    async def list_jobs(
        self, states: Sequence[jobs_pb2.JobState.ValueType] = (), *, timeout_s: float | None = None
    ) -> list[jobs_pb2.Job]:
        """All jobs, or those in one of the states, newest first."""
        request = jobs_pb2.ListJobsRequest(page_size=PAGE_SIZE, states=states)
        pages = self._pages(self._stubs.jobs.List, request, timeout_s)
        return [job async for page in pages for job in page.jobs]

    async def watch(
        self,
        name: str,
        from_seq: int = 0,
        *,
        cancel_on_disconnect: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[jobs_pb2.Event, None]:
        """The job's events from a sequence number on, until it has ended or is INTERRUPTED.

        Reconnects by itself from the last number seen: each event comes once, in order, none is lost.

        Args:
            name: "jobs/{id}".
            from_seq: the first number wanted; 0 means from the beginning.
            cancel_on_disconnect: cancel the job when this stream ends before the job does; no reconnecting then.
        """
        deadline = deadline_after(timeout_s)
        backoff = Backoff(self._transport, self._retry_s, deadline)
        following = max(from_seq, 1)
        while True:
            request = jobs_pb2.WatchRequest(
                name=name, from_seq=following, cancel_on_disconnect=cancel_on_disconnect
            )
            try:
                stream = self._transport.stream(self._stubs.jobs.Watch, request, left_until(deadline))
                async with aclosing(stream) as events:
                    async for event in events:
                        if event.seq < following:
                            continue
                        if event.seq > following:
                            raise DataLossError(f"{name}: event {event.seq} came where {following} was expected")
                        following = event.seq + 1
                        backoff.restart(self._reconnect_s)
                        yield event
                return
            except (UnavailableError, CancelledError) as error:  # a server that stops cancels its streams
                if cancel_on_disconnect:
                    raise
                await backoff.pause(error)

    async def wait(
        self,
        name: str,
        *,
        on_event: Callable[[jobs_pb2.Event], None] | None = None,
        timeout_s: float | None = None,
    ) -> jobs_pb2.Job:
        """The job when it has ended, or is INTERRUPTED; look at its `state`.

        Args:
            name: "jobs/{id}".
            on_event: called with each event on the way.

        Raises:
            DeadlineExceededError: after `timeout_s`; the job goes on.
        """
        async with aclosing(self.watch(name, timeout_s=timeout_s)) as events:
            async for event in events:
                if on_event is not None:
                    on_event(event)
        return await self.get_job(name)

    async def cancel_job(self, name: str, *, timeout_s: float | None = None) -> jobs_pb2.Job:
        """Ask a job to stop; it does within one training step. Not tried again: it may have stopped by then."""
        request = jobs_pb2.CancelJobRequest(name=name)
        return await self._call(self._stubs.jobs.Cancel, request, timeout_s, repeatable=False)

    async def resume_job(self, name: str, *, timeout_s: float | None = None) -> jobs_pb2.Job:
        """Queue an INTERRUPTED job again. Not tried again: it may be queued by then."""
        request = jobs_pb2.ResumeJobRequest(name=name)
        return await self._call(self._stubs.jobs.Resume, request, timeout_s, repeatable=False)

    async def delete_job(self, name: str, *, timeout_s: float | None = None) -> None:
        """Remove a job that has ended, with its log and files. Not tried again: a second try would not find it."""
        request = jobs_pb2.DeleteJobRequest(name=name)
        await self._call(self._stubs.jobs.Delete, request, timeout_s, repeatable=False)

    async def tensorboard(
        self, name: str, folder: str | Path, *, follow: bool = False, timeout_s: float | None = None
    ) -> Path:
        """Write the job's log as an event file below `folder`, for `tensorboard --logdir folder`.

        Args:
            name: "jobs/{id}".
            folder: made if missing; the job gets a sub-folder, and its file is written anew by each call.
            follow: go on writing until the job has ended.

        Returns:
            The file.
        """
        path = Path(folder, name.rpartition("/")[2], "events.out.tfevents.pyserve")
        request = jobs_pb2.TensorBoardRequest(name=name, follow=follow)
        stream = self._transport.stream(self._stubs.jobs.TensorBoard, request, timeout_s)
        await event_file.save(self._transport, stream, path)
        return path

    async def get_artifact(self, job: str, artifact: str, *, timeout_s: float | None = None) -> common_pb2.Figure:
        """A file that the job made, such as ("jobs/{id}", "training_curves.png")."""
        request = jobs_pb2.GetArtifactRequest(name=f"{job}/artifacts/{artifact}")
        return await self._call(self._stubs.jobs.GetArtifact, request, timeout_s)

    # The server

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """Whether the server, or one of its services, takes calls: "SERVING" or "NOT_SERVING". Needs no token.

        Args:
            service: such as "pyserve.v1.Predict"; "" means the whole server.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await self._call(self._stubs.health.Check, request, timeout_s, repeatable=False)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
