"""Who may call what: tokens, scopes, limits, audit, and that a refused call's request is never read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from pyserve.config import Settings
from pyserve.security.tokens import TokenFile
from pyserve.server.app import Server
from pyserve.server.gate import resource_of
from pyserve.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    insight_pb2,
    insight_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    predict_pb2,
    predict_pb2_grpc,
)

Start = Callable[..., Any]


class Running:
    """A server that asks for tokens, and a channel to it."""

    def __init__(self, settings: Settings) -> None:
        self.file = TokenFile(settings.tokens_path)
        self._server = Server(settings)

    async def __aenter__(self) -> Running:
        self.address = f"127.0.0.1:{await self._server.start()}"
        self.channel = grpc.aio.insecure_channel(self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._server.stop(5)

    def token(self, *scopes: str, name: str = "alice") -> tuple[tuple[str, str], ...]:
        """Metadata with a new token."""
        return bearer(self.file.create(name, scopes)[0])

    async def has_under_way(self, count: int) -> bool:
        return self._server._gate._limits._running.total() == count

    async def get_dataset(self, metadata: Any = ()) -> Any:
        stub = datasets_pb2_grpc.DatasetsStub(self.channel)
        return await stub.Get(datasets_pb2.GetDatasetRequest(name="datasets/pets"), metadata=metadata, timeout=20)


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def made(**settings: Any) -> Running:
        fields = {"data_dir": tmp_path / "data", "port": 0, "require_tokens": True} | settings
        return Running(Settings(**fields))

    return made


async def code(call: Any) -> grpc.StatusCode:
    """How a call ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when the condition holds; the test's own time limit ends a wait that is in vain."""
    while not await condition():  # noqa: ASYNC110  it is the server's state that is asked for
        await asyncio.sleep(0.01)


def calls(channel: grpc.aio.Channel, metadata: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    """One call for each scope, whose answers without a token would be OK, NOT_FOUND or INVALID_ARGUMENT."""

    async def reflect() -> None:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for _ in stub.ServerReflectionInfo(iter([request]), metadata=metadata, timeout=20):
            pass

    async def upload() -> None:
        header = datasets_pb2.UploadHeader(dataset_id="pets", size_bytes=-1)
        request = iter([datasets_pb2.UploadRequest(header=header)])
        await datasets_pb2_grpc.DatasetsStub(channel).Upload(request, metadata=metadata, timeout=20)

    async def watch() -> None:
        stub = jobs_pb2_grpc.JobsStub(channel)
        async for _ in stub.Watch(jobs_pb2.WatchRequest(name="jobs/none"), metadata=metadata, timeout=20):
            pass

    args = {"metadata": metadata, "timeout": 20}
    jobs, models = jobs_pb2_grpc.JobsStub(channel), models_pb2_grpc.ModelsStub(channel)
    return {
        "health": lambda: health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), **args),
        "kernels": lambda: insight_pb2_grpc.InsightStub(channel).Kernels(insight_pb2.KernelsRequest(), **args),
        "list models": lambda: models.List(models_pb2.ListModelsRequest(), **args),
        "reflection": reflect,
        "predict": lambda: predict_pb2_grpc.PredictStub(channel).Predict(predict_pb2.PredictRequest(), **args),
        "list jobs": lambda: jobs.List(jobs_pb2.ListJobsRequest(), **args),
        "watch": watch,
        "upload": upload,
    }


ANY = {"health", "kernels", "list models", "reflection"}


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (("predict",), ANY | {"predict"}),
        (("train",), ANY | {"list jobs", "watch", "upload"}),
        (("predict", "train"), ANY | {"predict", "list jobs", "watch", "upload"}),
        (("admin",), ANY | {"predict", "list jobs", "watch", "upload"}),
    ],
)
async def test_scopes(start: Start, scopes: tuple[str, ...], allowed: set[str]) -> None:
    async with start() as server:
        for name, call in calls(server.channel, server.token(*scopes)).items():
            refused = await code(call()) is grpc.StatusCode.PERMISSION_DENIED
            assert refused == (name not in allowed), name


async def test_without_a_token_only_health_answers(start: Start) -> None:
    async with start() as server:
        server.token("admin")
        for name, call in calls(server.channel, ()).items():
            assert (await code(call()) is grpc.StatusCode.UNAUTHENTICATED) == (name != "health"), name


async def test_sentences(start: Start) -> None:
    async with start() as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.get_dataset()
        assert "asks for a token" in str(caught.value.details())
        assert "PYSERVE_TOKEN" in str(caught.value.details())
        metadata = server.token("predict")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.get_dataset(metadata)
        text = str(caught.value.details())
        assert "pyserve.v1.Datasets/Get asks for a token with scope 'train'" in text
        assert "(alice) has predict" in text
        status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.reason, info.metadata["scope"]) == ("PERMISSION_DENIED", "train")
        assert info.metadata["request_id"]


async def test_without_require_tokens_nobody_is_asked(start: Start) -> None:
    async with start(require_tokens=False) as server:
        assert await code(server.get_dataset()) is grpc.StatusCode.NOT_FOUND
        assert await code(server.get_dataset(bearer("whatever"))) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("setting", "anonymous", "with_token"),
    [("off", "UNIMPLEMENTED", "UNIMPLEMENTED"), ("token", "UNAUTHENTICATED", "OK"), ("open", "OK", "OK")],
)
async def test_reflection(start: Start, setting: str, anonymous: str, with_token: str) -> None:
    async with start(reflection=setting) as server:
        assert (await code(calls(server.channel, ())["reflection"]())).name == anonymous
        metadata = server.token("predict")
        assert (await code(calls(server.channel, metadata)["reflection"]())).name == with_token


async def test_a_refused_request_is_never_read(start: Start) -> None:
    """However much a stranger sends, the server takes no more than a window of it."""
    async with start() as server:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield b"\0" * 1_000_000

        def call() -> tuple[grpc.StatusCode, grpc.StatusCode]:
            with grpc.insecure_channel(server.address) as channel:
                upload = channel.stream_unary("/pyserve.v1.Datasets/Upload").future(endless(), timeout=30)
                # 60 MB that are no message of protobuf: read, they would be INTERNAL
                junk = channel.unary_unary("/pyserve.v1.Jobs/Get").future(b"\xff" * 60_000_000, timeout=30)
                return upload.code(), junk.code()

        # blocking: grpc.aio's client loses the status of a call that ends while it sends
        assert await asyncio.to_thread(call) == (grpc.StatusCode.UNAUTHENTICATED,) * 2
        assert sent < 20


async def full(server: Running, metadata: Any) -> bool:
    try:
        await server.get_dataset(metadata)
    except grpc.aio.AioRpcError as error:
        return "calls under way, the limit (max_calls_at_once)" in str(error.details())
    return False


async def free(server: Running, metadata: Any) -> bool:
    return await code(server.get_dataset(metadata)) is grpc.StatusCode.NOT_FOUND


async def test_calls_at_once(start: Start) -> None:
    async with start(max_calls_at_once=3) as server:
        metadata, other = server.token("train"), server.token("train", name="bob")
        unfinished = [
            server.channel.stream_unary("/pyserve.v1.Datasets/Upload")(metadata=metadata, timeout=30)
            for _ in range(3)
        ]
        await until(lambda: server.has_under_way(3))
        assert await full(server, metadata)
        assert await code(server.get_dataset(other)) is grpc.StatusCode.NOT_FOUND
        for call in unfinished:
            call.cancel()
        await until(lambda: free(server, metadata))


async def test_a_request_that_never_comes_counts_and_is_given_back(start: Start) -> None:
    """A call of one message: its headers came, its message did not."""
    async with start(max_calls_at_once=1) as server:
        metadata = server.token("train")
        half = server.channel.stream_unary("/pyserve.v1.Jobs/Get")(metadata=metadata, timeout=30)
        await until(lambda: server.has_under_way(1))
        assert await full(server, metadata)
        half.cancel()
        await until(lambda: free(server, metadata))


async def test_calls_per_second(start: Start) -> None:
    async with start(max_calls_per_s=0.001) as server:
        metadata, other = server.token("train"), server.token("train", name="bob")
        assert await code(server.get_dataset(metadata)) is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError, match="max_calls_per_s") as caught:
            await server.get_dataset(metadata)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert 900 < retry.retry_delay.seconds <= 1000
        assert await code(server.get_dataset(other)) is grpc.StatusCode.NOT_FOUND
        for _ in range(20):  # health is nobody's to use up
            assert await code(calls(server.channel, metadata)["health"]()) is grpc.StatusCode.OK


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_audit(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with start(audit_log=path) as server:
        metadata = server.token("train")
        await code(server.get_dataset(metadata))
        await code(server.get_dataset())
        await code(calls(server.channel, metadata)["predict"]())
        await code(calls(server.channel, metadata)["upload"]())
        await code(calls(server.channel, metadata)["health"]())
        await code(calls(server.channel, metadata)["list jobs"]())
    [token] = server.file.read()
    written = lines(path)
    assert [(w["method"], w.get("resource"), w["code"], w["caller"]) for w in written] == [
        ("pyserve.v1.Datasets/Get", "datasets/pets", "NOT_FOUND", "alice"),
        ("pyserve.v1.Datasets/Get", None, "UNAUTHENTICATED", "anonymous"),
        ("pyserve.v1.Predict/Predict", None, "PERMISSION_DENIED", "alice"),
        ("pyserve.v1.Datasets/Upload", "datasets/pets", "INVALID_ARGUMENT", "alice"),
        ("pyserve.v1.Jobs/List", None, "OK", "alice"),
    ]
    assert written[0]["token"] == token.id
    assert written[0]["peer"].startswith("ipv4:127.0.0.1:")
    assert len({w["request_id"] for w in written}) == len(written)


@pytest.mark.parametrize("audited", [False, True])
async def test_predictions_that_succeed_are_written_where_that_is_wanted(
    start: Start, tmp_path: Path, audited: bool
) -> None:
    """ModelMetadata and the like belong to the scope "predict" too; what fails is always written."""
    path = tmp_path / "audit.jsonl"
    async with start(audit_log=path, audit_predictions=audited) as server:
        stub = predict_pb2_grpc.PredictStub(server.channel)
        request = predict_pb2.PredictRequest(model="models/none")
        await code(stub.Predict(request, metadata=server.token("predict"), timeout=20))
    assert [(w["resource"], w["code"]) for w in lines(path)] == [("models/none", "INVALID_ARGUMENT")]


def test_resources() -> None:
    train = jobs_pb2.TrainRequest(train=jobs_pb2.TrainSpec(dataset="datasets/pets", model_id="cats"))
    finder = jobs_pb2.FindLearningRateRequest()
    finder.find_learning_rate.training.dataset = "datasets/pets"
    header = datasets_pb2.UploadRequest(header=datasets_pb2.UploadHeader(dataset_id="pets"))
    assert resource_of(train) == "datasets/pets"
    assert resource_of(finder) == "datasets/pets"
    assert resource_of(header) == "datasets/pets"
    assert resource_of(datasets_pb2.UploadRequest(chunk=b"x")) == ""
    assert resource_of(predict_pb2.PredictRequest(model="models/a@b")) == "models/a@b"
    assert resource_of(jobs_pb2.ListJobsRequest()) == ""


async def test_no_secret_reaches_a_log_or_an_answer(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    path = tmp_path / "audit.jsonl"
    async with start(audit_log=path) as server:
        good = server.token("admin")
        wrong = bearer(good[0][1].removeprefix("Bearer ")[:-4] + "AAAA")
        told = ""
        for metadata in (good, wrong, bearer("hunter2-hunter2"), (("authorization", "Basic aHVudGVyMg=="),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await server.get_dataset(metadata)
            told += str(caught.value.details()) + str(caught.value.trailing_metadata())
    everything = told + caplog.text + path.read_text()
    assert "Datasets/Get" in everything
    for secret in (good[0][1].split("_", 2)[2][:20], "hunter2", "aHVudGVyMg"):
        assert secret not in everything
