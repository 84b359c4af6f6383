"""`inference.GRPCInferenceService`: the open inference protocol v2, as clients of KServe and Triton speak it."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.metadata import version as package_version
from typing import Any

from pyserve import paging
from pyserve.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from pyserve.inference.batcher import Batcher
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_info import ModelInfo
from pyserve.inference.model_store import ModelStore
from pyserve.inference.predictor import Predictor, Probabilities
from pyserve.inference.work import DEFAULT_PRIORITY, Terms
from pyserve.open_inference import grpc_service_pb2 as pb
from pyserve.open_inference import grpc_service_pb2_grpc
from pyserve.server import open_inference as protocol
from pyserve.server import validate
from pyserve.server.open_inference_model import model_config, model_metadata, model_statistics
from pyserve.server.pools import Pools
from pyserve.server.prediction import MANY_PROBABILITIES, STREAM_LIMIT, Prediction, deadline_of
from pyserve.server.status import StatusTeller
from pyserve.server.streams import as_done

SERVICE = "inference.GRPCInferenceService"
_EXTENSIONS = ("classification", "model_configuration", "model_repository", "schedule_policy", "statistics")
_INTEGER = ("int64_param", "uint64_param")


class OpenInferenceService(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """The open inference protocol over gRPC.

    Args:
        prediction: answers.
        store: the models that there are.
        pools: threads for blocking work.
        statuses: tells the clients of streams what went wrong.
        is_serving: whether the server takes predictions.
    """

    def __init__(
        self,
        prediction: Prediction,
        store: ModelStore,
        pools: Pools,
        statuses: StatusTeller,
        is_serving: Callable[[], bool],
    ) -> None:
        self._prediction = prediction
        self._models: LoadedModels = prediction.models
        self._batcher: Batcher = prediction.batcher
        self._store = store
        self._pools = pools
        self._statuses = statuses
        self._is_serving = is_serving

    # The server

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        """It answers, so it lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        """Whether it takes predictions."""
        return pb.ServerReadyResponse(ready=self._is_serving())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        """What it is."""
        return pb.ServerMetadataResponse(
            name="pyserve", version=package_version("pyserve"), extensions=_EXTENSIONS
        )

    # Prediction

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        """What is on the pictures."""
        return await self._infer(request, context)

    async def ModelStreamInfer(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answers as they are done."""

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            return await self._infer_in_stream(request, context)

        async with aclosing(as_done(request_iterator, answer, STREAM_LIMIT)) as answers:  # type: ignore[type-var]
            async for response in answers:
                yield response

    async def _infer_in_stream(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelStreamInferResponse:
        try:
            response = await self._infer(request, context)
        except Exception as error:
            status = self._statuses.tell(error, "ModelStreamInfer", uuid.uuid4().hex)
            failed = pb.ModelInferResponse(
                id=request.id, model_name=request.model_name, model_version=request.model_version
            )
            return pb.ModelStreamInferResponse(error_message=status.message, infer_response=failed)
        if request.parameters["triton_enable_empty_final_response"].bool_param:
            response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)

    async def _infer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        name = protocol.resource_name(request.model_name, request.model_version)
        pictures = protocol.pictures(request, self._prediction.check_count)
        wanted = protocol.wanted_outputs(request)
        terms = Terms(
            tta=bool(protocol.parameter(request, "tta", ("bool_param",), "a bool")),
            priority=_priority(request),
            deadline=deadline_of(context, _timeout_s(request)),
            field=protocol.input_field(request),
        )
        model = await self._prediction.model(name)
        probabilities = await self._prediction.answer(model, pictures, terms)
        if probabilities.size > MANY_PROBABILITIES:
            return await self._pools.quick.run(_response, request, wanted, model, probabilities)
        return _response(request, wanted, model, probabilities)

    # Models

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        """Whether it would answer."""
        try:
            info = await self._info(request.name, request.version)
        except NotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_serving() and not self._models.is_unloaded(info.name))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        """Its inputs and outputs."""
        info = await self._info(request.name, request.version)
        versions = await self._pools.quick.run(self._store.versions, info.name)
        return model_metadata(info, versions)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> pb.ModelConfigResponse:
        """How it is served."""
        info = await self._info(request.name, request.version)
        config = model_config(info, self._batcher.policy, self._models)
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Any
    ) -> pb.ModelStatisticsResponse:
        """What the models in memory have done."""
        predictors = self._models.loaded()
        if request.name:
            info = await self._info(request.name, request.version)
            of_any_version = not request.version and "@" not in request.name
            prefix = f"models/{info.model_id}/" if of_any_version else info.name
            predictors = [p for p in predictors if p.name.startswith(prefix)]
        return pb.ModelStatisticsResponse(model_stats=[model_statistics(p) for p in predictors])

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        """All models."""
        infos = await self._pools.quick.run(self._all_infos)
        loaded = {predictor.name for predictor in self._models.loaded()}
        entries = [self._index_entry(info, info.name in loaded) for info in infos]
        return pb.RepositoryIndexResponse(
            models=[entry for entry in entries if entry.state == "READY" or not request.ready]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Bring a model into memory."""
        if request.parameters:
            names = ", ".join(sorted(request.parameters))
            raise InvalidArgumentError.field("parameters", names, "none: models are served as the settings say")
        name = protocol.resource_name(request.model_name, "")
        await self._pools.slow.run(self._models.load, name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Take a model out of memory."""
        name = protocol.resource_name(request.model_name, "")
        await self._pools.slow.run(self._unload, name)
        return pb.RepositoryModelUnloadResponse()

    # What there is not: tensors travel in the messages, and settings are the server's

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        """Not here."""
        raise UnimplementedError("shared memory is not offered: send tensors in the messages")

    SystemSharedMemoryRegister = SystemSharedMemoryUnregister = SystemSharedMemoryStatus
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = SystemSharedMemoryStatus

    async def TraceSetting(self, request: Any, context: Any) -> Any:
        """Not here."""
        raise UnimplementedError("settings are not read or changed over this protocol: see `pyserve config`")

    LogSettings = TraceSetting

    async def _info(self, name: str, version: str) -> ModelInfo:
        return await self._pools.quick.run(self._store.get, protocol.resource_name(name, version, "name"))

    def _all_infos(self) -> list[ModelInfo]:
        infos: list[ModelInfo] = []
        token = ""
        while True:
            page, token = self._store.list(paging.MOST, token)
            infos += page
            if not token:
                return infos

    def _index_entry(self, info: ModelInfo, is_loaded: bool) -> pb.RepositoryIndexResponse.ModelIndex:
        entry = pb.RepositoryIndexResponse.ModelIndex(name=info.model_id, version=str(info.version))
        if is_loaded:
            entry.state = "READY"
        else:
            entry.state = "UNAVAILABLE"
            is_unloaded = self._models.is_unloaded(info.name)
            entry.reason = "unloaded" if is_unloaded else "not in memory; it is loaded when it is first asked"
        return entry

    def _unload(self, name: str) -> None:
        """All versions of "models/{id}"; what an alias points to."""
        if "@" in name:
            self._models.unload(name)
            return
        loaded = {predictor.name for predictor in self._models.loaded()}
        versions = [f"{name}/versions/{number}" for number in self._store.versions(name)]
        for version in versions:
            if version in loaded or version == versions[-1]:
                self._models.unload(version)


def _priority(request: pb.ModelInferRequest) -> int:
    field = "parameters.priority"
    value = protocol.parameter(request, "priority", _INTEGER, "a number") or DEFAULT_PRIORITY  # 0 is none
    return validate.priority(value, field)


def _timeout_s(request: pb.ModelInferRequest) -> float:
    value = protocol.parameter(request, "timeout", _INTEGER, "microseconds") or 0  # 0 is none
    if value < 0:
        raise InvalidArgumentError.field("parameters.timeout", value, "≥ 0 microseconds")
    return value / 1e6 if value else math.inf


def _response(
    request: pb.ModelInferRequest, wanted: list[int], model: Predictor, probabilities: Probabilities
) -> pb.ModelInferResponse:
    name, version = protocol.protocol_name(model.name)
    response = pb.ModelInferResponse(model_name=name, model_version=version, id=request.id)
    # in the form in which the request came: who sent lists of numbers can read them
    raw = bool(request.raw_input_contents)
    protocol.add_outputs(response, wanted, model, probabilities, raw=raw)
    return response
