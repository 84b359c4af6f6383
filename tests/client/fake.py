"""A server that answers as it is told, and both clients behind one blocking face."""

from __future__ import annotations

# ruff: noqa: N802  # gRPC names the methods
import asyncio
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from pyserve.client import AsyncClient
from pyserve.v1 import (
    common_pb2,
    datasets_pb2,
    datasets_pb2_grpc,
    insight_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    predict_pb2,
    predict_pb2_grpc,
)
from tests.client.fake_insight import InsightOf

Failure = Callable[[grpc.ServicerContext], None]


def unavailable(context: grpc.ServicerContext) -> None:
    """As of a server that drains."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "draining")


def failing(code: grpc.StatusCode, message: str, *details: Any) -> Failure:
    """A failure with google.rpc.Status details."""
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)

    def fail(context: grpc.ServicerContext) -> None:
        context.abort_with_status(rpc_status.to_status(status))

    return fail


def details() -> tuple[Any, ...]:
    """One detail of each kind."""
    info = error_details_pb2.ErrorInfo(reason="X", domain="pyserve", metadata={"limit": "3"})
    violation = error_details_pb2.BadRequest.FieldViolation(field="train.epochs", description="got -1")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    return info, error_details_pb2.BadRequest(field_violations=[violation]), retry


class FakeServer(datasets_pb2_grpc.DatasetsServicer, predict_pb2_grpc.PredictServicer):
    """Remembers its requests; the next calls fail as `failures` says.

    `export_cut`: how many bytes of an export are missing. `watch_breaks`: after how many events the next streams
    break; `upload_breaks`: after how many bytes uploads do.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.failures: list[Failure] = []
        self.events = [jobs_pb2.Event(seq=i + 1, log=jobs_pb2.LogLine(message=str(i))) for i in range(10)]
        self.watch_breaks: list[int] = []
        self.upload_breaks: list[int] = []
        self.upload_aborts = 0
        self.parts: dict[str, bytes] = {}
        self.made: dict[str, datasets_pb2.Dataset] = {}
        self.jobs: dict[str, jobs_pb2.Job] = {}
        self.version = 1
        self.end = jobs_pb2.Job(name="jobs/x", state=jobs_pb2.SUCCEEDED)
        self.endless = False
        self.export_cut = 0
        self._server: grpc.Server | None = None
        self.port = 0

    def start(self) -> None:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 2**20)],
        )
        datasets_pb2_grpc.add_DatasetsServicer_to_server(self, self._server)
        jobs_pb2_grpc.add_JobsServicer_to_server(JobsOf(self), self._server)
        models_pb2_grpc.add_ModelsServicer_to_server(ModelsOf(self), self._server)
        insight_pb2_grpc.add_InsightServicer_to_server(InsightOf(self.note), self._server)
        predict_pb2_grpc.add_PredictServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.failures:
            self.failures.pop(0)(context)

    def QueryUpload(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        part = len(self.parts.get(request.request_id, b""))
        return datasets_pb2.QueryUploadResponse(committed_bytes=part, dataset=self.made.get(request.request_id))

    def Upload(self, request_iterator: Any, context: Any) -> Any:
        header = next(request_iterator).header
        self.note(header, context)
        if self.upload_aborts:
            self.upload_aborts -= 1
            list(request_iterator)
            context.abort(grpc.StatusCode.ABORTED, "another call sends this upload")
        part = self.parts.get(header.request_id, b"")[: header.offset_bytes]
        end = self.upload_breaks.pop(0) if self.upload_breaks else None
        for message in request_iterator:
            part += message.chunk
            self.parts[header.request_id] = part
            if end is not None and len(part) >= end:
                unavailable(context)
        assert len(part) == header.size_bytes
        assert hashlib.sha256(part).hexdigest() == header.sha256
        self.made[header.request_id] = datasets_pb2.Dataset(name=f"datasets/{header.dataset_id}")
        return self.made[header.request_id]

    def Register(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return datasets_pb2.Dataset(name=f"datasets/{request.dataset_id}")

    def Get(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return datasets_pb2.Dataset(name=request.name)

    def GetPicture(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return common_pb2.Figure(name="p.jpg", media_type="image/jpeg", data=request.path.encode())

    def List(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        page = int(request.page_token or 0)
        found = [datasets_pb2.Dataset(name=f"datasets/{2 * page + i}") for i in range(2)]
        return datasets_pb2.ListDatasetsResponse(datasets=found, next_page_token=str(page + 1) if page < 2 else "")

    def Relabel(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        origin = datasets_pb2.Origin(dataset=request.name, corrections=[datasets_pb2.Correction()] * 2)
        return datasets_pb2.Dataset(name=f"datasets/{request.dataset_id or 'x-v2'}", version=2, origin=origin)

    def Delete(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return Empty()

    def Predict(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        count = len(request.images.data) if request.HasField("images") else request.tensor.shape[0]
        name = request.model if "/versions/" in request.model else f"{request.model}/versions/{self.version}"
        self.version += 1
        return predict_pb2.PredictResponse(
            model=name,
            predictions=[
                predict_pb2.Prediction(scores=[predict_pb2.ClassScore(label=str(i))]) for i in range(count)
            ],
        )


class JobsOf(jobs_pb2_grpc.JobsServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def Train(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return self._fake.jobs.setdefault(request.request_id, jobs_pb2.Job(name=f"jobs/{len(self._fake.jobs)}"))

    def FindLearningRate(self, request: Any, context: Any) -> Any:
        return self.Train(request, context)

    def Get(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return self._fake.end

    def List(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return jobs_pb2.ListJobsResponse(jobs=[jobs_pb2.Job(name="jobs/0", state=s) for s in request.states])

    def Cancel(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return jobs_pb2.Job(name=request.name, state=jobs_pb2.CANCELLING)

    def Delete(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return Empty()

    def Resume(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return jobs_pb2.Job(name=request.name, state=jobs_pb2.QUEUED)

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        self._fake.note(request, context)
        end = self._fake.watch_breaks.pop(0) if self._fake.watch_breaks else None
        for sent, event in enumerate(e for e in self._fake.events if e.seq >= request.from_seq):
            if sent == end:
                unavailable(context)
            yield event
        if self._fake.endless:
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(60)

    def TensorBoard(self, request: Any, context: Any) -> Iterator[Any]:
        self._fake.note(request, context)
        yield jobs_pb2.TensorBoardChunk(data=b"header,")
        yield jobs_pb2.TensorBoardChunk(data=b"events")

    def GetArtifact(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return common_pb2.Figure(name=request.name.split("/artifacts/")[1], data=b"picture")


class ModelsOf(models_pb2_grpc.ModelsServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def Get(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return models_pb2.Model(name=f"{request.name}/versions/1")

    def Load(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        memory = models_pb2.MemoryChange(before_bytes=2**20, after_bytes=3 * 2**20)
        model = models_pb2.Model(name=f"{request.name}/versions/1", loaded=True)
        return models_pb2.LoadModelResponse(model=model, memory=memory, model_bytes=2 * 2**20)

    def Unload(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        memory = models_pb2.MemoryChange(before_bytes=3 * 2**20, after_bytes=2**20)
        return models_pb2.UnloadModelResponse(
            model=models_pb2.Model(name=f"{request.name}/versions/1"), memory=memory
        )

    def SetAlias(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return models_pb2.Model(name=request.version or "models/m/versions/1")

    def Delete(self, request: Any, context: Any) -> Any:
        self._fake.note(request, context)
        return Empty()

    def Export(self, request: Any, context: Any) -> Iterator[Any]:
        self._fake.note(request, context)
        archive = bytes(range(256)) * 100
        header = models_pb2.ExportHeader(
            model=models_pb2.Model(name=f"{request.name}/versions/1"),
            size_bytes=len(archive),
            sha256=hashlib.sha256(archive).hexdigest(),
        )
        yield models_pb2.ExportModelResponse(header=header)
        for begin in range(0, len(archive) - self._fake.export_cut, 1000):
            yield models_pb2.ExportModelResponse(chunk=archive[begin : begin + 1000])

    def Import(self, request_iterator: Any, context: Any) -> Any:
        header = next(request_iterator).header
        self._fake.note(header, context)
        archive = b"".join(message.chunk for message in request_iterator)
        assert hashlib.sha256(archive).hexdigest() == header.sha256
        return models_pb2.Model(name=f"models/{header.model_id}/versions/1", size_bytes=len(archive))


class Driven:
    """An AsyncClient with blocking methods, so that one test serves both clients."""

    def __init__(self, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = self._do(self._make(address, options))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if inspect.isasyncgenfunction(method):
            return lambda *args, **kwargs: self._items(method(*args, **kwargs))
        return lambda *args, **kwargs: self._do(method(*args, **kwargs))

    def close(self) -> None:
        self._do(self._client.close())
        self._loop.close()

    async def _make(self, address: str, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(address, **options)

    def _do(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)

    def _items(self, generator: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    item = self._do(anext(generator))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._do(generator.aclose())
