"""`pyserve.v1.Models`: what trainings produced: described, loaded, named, moved, removed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.empty_pb2 import Empty

from pyserve.errors import (
    DataError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from pyserve.inference import bundle_archive
from pyserve.inference.loaded_models import LoadedModels, MemoryChange
from pyserve.inference.model_info import ModelInfo
from pyserve.inference.model_store import ModelStore
from pyserve.inference.onnx_export import export_onnx
from pyserve.server import convert, validate
from pyserve.server.caller import ShouldStop, run_for
from pyserve.server.pools import Pools
from pyserve.server.receive import header, heard_out, receive
from pyserve.server.uploads import UploadPlan, Uploads
from pyserve.v1 import models_pb2, models_pb2_grpc

IMPORT = "Import"


class ModelsService(models_pb2_grpc.ModelsServicer):
    """Models over gRPC.

    Args:
        store: the models on disk.
        models: those in memory.
        uploads: archives on their way in.
        pools: threads for blocking work.
        users_of: names of the jobs that have not ended and use a model by one of the given names.
    """

    def __init__(
        self,
        store: ModelStore,
        models: LoadedModels,
        uploads: Uploads,
        pools: Pools,
        users_of: Callable[[Sequence[str]], Sequence[str]],
    ) -> None:
        self._store = store
        self._models = models
        self._uploads = uploads
        self._pools = pools
        self._users_of = users_of

    async def Get(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.Model:
        """One model version."""
        name = validate.model_name(request.name)
        return self._describe(await self._pools.quick.run(self._store.get, name))

    async def List(self, request: models_pb2.ListModelsRequest, context: Any) -> models_pb2.ListModelsResponse:
        """A page of model versions."""
        infos, token = await self._pools.quick.run(self._store.list, request.page_size, request.page_token)
        return models_pb2.ListModelsResponse(models=[self._describe(i) for i in infos], next_page_token=token)

    async def Load(self, request: models_pb2.LoadModelRequest, context: Any) -> models_pb2.LoadModelResponse:
        """Bring a model into memory."""
        name = validate.model_name(request.name)
        predictor, change = await self._pools.slow.run(self._models.load, name)
        info = await self._pools.quick.run(self._store.get, predictor.name)
        return models_pb2.LoadModelResponse(
            model=self._describe(info), memory=_memory(change), model_bytes=predictor.bundle.memory_bytes
        )

    async def Unload(self, request: models_pb2.UnloadModelRequest, context: Any) -> models_pb2.UnloadModelResponse:
        """Take a model out of memory."""
        name = validate.model_name(request.name)
        info = await self._pools.quick.run(self._store.get, name)
        change = await self._pools.slow.run(self._models.unload, info.name)
        return models_pb2.UnloadModelResponse(model=self._describe(info), memory=_memory(change))

    async def SetAlias(self, request: models_pb2.SetAliasRequest, context: Any) -> models_pb2.Model:
        """Point an alias to a version, or remove it."""
        version = validate.model_name(request.version, "version") if request.version else ""
        return self._describe(await self._pools.slow.run(self._set_alias, request.alias, version))

    async def Delete(self, request: models_pb2.DeleteModelRequest, context: Any) -> Empty:
        """Remove a version or a model that no unfinished job needs."""
        await self._pools.slow.run(self._delete, validate.model_name(request.name))
        return Empty()

    async def Export(
        self, request: models_pb2.ExportModelRequest, context: Any
    ) -> AsyncIterator[models_pb2.ExportModelResponse]:
        """A version as an archive, or as an ONNX file."""
        info = await self._pools.quick.run(self._store.get, validate.model_name(request.name))
        if request.format == models_pb2.EXPORT_FORMAT_ONNX:
            with await run_for(context, self._pools.export, partial(self._onnx_file, info)) as file:
                async for response in self._sent(info, partial(bundle_archive.chunks_of, file)):
                    yield response
        elif request.format in (models_pb2.EXPORT_FORMAT_UNSPECIFIED, models_pb2.EXPORT_FORMAT_BUNDLE):
            async for response in self._sent(info, partial(bundle_archive.packed, info.folder)):
                yield response
        else:
            raise InvalidArgumentError.field(
                "format", request.format, "EXPORT_FORMAT_BUNDLE or EXPORT_FORMAT_ONNX"
            )

    async def _sent(
        self, info: ModelInfo, pieces: Callable[[], Iterator[bytes]]
    ) -> AsyncIterator[models_pb2.ExportModelResponse]:
        """The header and the chunks of a file that can be read twice."""
        size, digest = await self._pools.slow.run(lambda: bundle_archive.measure(pieces()))
        header = models_pb2.ExportHeader(model=self._describe(info), size_bytes=size, sha256=digest)
        yield models_pb2.ExportModelResponse(header=header)
        chunks = pieces()
        while (chunk := await self._pools.quick.run(next, chunks, None)) is not None:
            yield models_pb2.ExportModelResponse(chunk=chunk)

    def _onnx_file(self, info: ModelInfo, should_stop: ShouldStop) -> BinaryIO:
        """An open file that is in no folder any more: its room comes back when it is closed, whatever happens."""
        with self._store.scratch() as folder:
            export_onnx(info.folder, folder / "model.onnx", name=info.name, should_stop=should_stop)
            return (folder / "model.onnx").open("rb")

    async def Import(self, request_iterator: Any, context: Any) -> models_pb2.Model:
        """Make a version of an archive."""
        messages = aiter(request_iterator)
        async with heard_out(messages):
            plan = _plan(await header(messages))

            def add(archive: Path) -> str:
                return self._store.add(plan.resource_id, lambda folder: self._unpack(archive, folder))

            # any model may get one more version
            name = await receive(self._uploads, plan, messages, self._pools, ensure_free=lambda _: None, make=add)
        return self._describe(await self._pools.quick.run(self._store.get, name))

    def _unpack(self, archive: Path, folder: Path) -> None:
        bundle_archive.unpack(archive, folder)
        try:
            self._models.prove(folder, "the archive")
        except DataLossError as error:  # nothing of ours: what was sent is damaged
            raise DataError(error.message) from error

    def _set_alias(self, alias: str, version: str) -> ModelInfo:
        """The version that the alias points to, or pointed to where it is removed."""
        if not version:
            info = self._store.get(alias)
            self._store.set_alias(alias, "")
            return info
        info = self._store.get(version)
        if self._alias_is_loaded(alias):
            self._models.get(info.name)  # so that predictions by the alias go on without a pause
        self._store.set_alias(alias, info.name)
        return self._store.get(info.name)

    def _alias_is_loaded(self, alias: str) -> bool:
        try:
            return self._models.find(alias) is not None
        except (NotFoundError, InvalidArgumentError):  # a new one, or none: the store says so
            return False

    def _delete(self, name: str) -> None:
        users = self._users_of(self._names(name))
        if users:
            raise FailedPreconditionError(
                f"{name} is in use: wait for {', '.join(users[:5])} to end, or cancel them, first",
                metadata={"jobs": ",".join(users[:5])},
            )
        for version in self._store.delete(name):
            self._models.forget(version)

    def _names(self, name: str) -> list[str]:
        """Every name under which a job may use a version, or any version of a model."""
        model, _, version = name.partition("/versions/")
        if version:
            return [name, model] if self._store.resolve(model) == name else [name]
        versions = [f"{model}/versions/{number}" for number in self._store.versions(model)]
        aliases = [f"{model}@{alias}" for alias in self._store.aliases(model)]
        return [model, *versions, *aliases]

    def _describe(self, info: ModelInfo) -> models_pb2.Model:
        return convert.model(info, loaded=self._models.is_loaded(info.name))


def _plan(message: models_pb2.ImportHeader) -> UploadPlan:
    return UploadPlan(
        call=IMPORT,
        resource_id=validate.resource_id(message.model_id, "header.model_id"),
        size_bytes=message.size_bytes,
        sha256=message.sha256.lower(),
        request_id=validate.request_id(message.request_id, "header.request_id"),
    )


def _memory(change: MemoryChange) -> models_pb2.MemoryChange:
    return models_pb2.MemoryChange(before_bytes=change.before_bytes, after_bytes=change.after_bytes)
