"""The calls that predict, and those on models."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from pyserve.client import model_files
from pyserve.client.calls_base import PAGE_SIZE, WORK_TIMEOUT_S, CallsBase
from pyserve.client.pictures import Picture, Pictures, for_caller, predict_requests, stream_requests
from pyserve.client.requests import enum_number
from pyserve.client.status import error_from_status
from pyserve.client.transport import deadline_after, left_until
from pyserve.client.upload import Progress
from pyserve.errors import InvalidArgumentError, PyserveError
from pyserve.v1 import models_pb2, predict_pb2


@dataclass(frozen=True)
class StreamedAnswer:
    """The answer to one picture of a stream: its prediction, or the error for it alone."""

    index: int  # of the picture among those that were sent
    model: str  # the version that answered; "" for an error
    prediction: predict_pb2.Prediction | None
    error: PyserveError | None


class ModelCalls(CallsBase):
    """See `calls.Calls`. A model is named "models/{id}" (its newest version), "models/{id}/versions/{n}", or
    "models/{id}@{alias}"."""

    async def predict(
        self,
        model: str,
        images: Pictures,
        *,
        top_k: int | None = None,
        tta: bool = False,
        priority: int | None = None,
        timeout_s: float | None = None,
    ) -> predict_pb2.PredictResponse:
        """Probabilities of the most likely classes for each picture, in the order of the pictures.

        Many pictures go out in several calls, all answered by the same model version.

        Args:
            model: any of its names.
            images: a path or the bytes of an encoded picture, several of them, or an array [N, H, W, 3] of
                pictures of the model's image size, uint8 (0…255) or float32 (0…1).
            top_k: how many classes for each picture; the server's default is 5.
            tta: test-time augmentation.
            priority: 1 is served first, 3 last; the server's default is 2.
        """
        deadline = deadline_after(timeout_s or WORK_TIMEOUT_S)
        answer = predict_pb2.PredictResponse(model=model)
        for request in predict_requests(model, images, top_k, tta, priority):
            request.model = answer.model
            try:
                part = await self._call(self._stubs.predict.Predict, request, left_until(deadline), hedged=True)
            except InvalidArgumentError as error:
                raise for_caller(error, images, len(answer.predictions)) from None
            answer.model = part.model
            answer.predictions.extend(part.predictions)
        return answer

    async def predict_stream(
        self,
        model: str,
        images: Iterable[Picture],
        *,
        top_k: int | None = None,
        tta: bool = False,
        priority: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StreamedAnswer, None]:
        """Predictions of any number of pictures over one connection, each as soon as it is there.

        The pictures are taken from the iterable as fast as the server takes them. A picture that cannot be
        predicted has its error, and the others go on; a connection that breaks ends it all.

        Args:
            model, top_k, tta, priority: as for `predict`.
            images: paths or bytes of encoded pictures.
        """
        requests = stream_requests(model, images, top_k, tta, priority)
        stream = self._transport.exchange(self._stubs.predict.PredictStream, requests, timeout_s)
        async with aclosing(stream) as responses:
            async for response in responses:
                index = int(response.id)
                if response.WhichOneof("outcome") == "error":
                    yield StreamedAnswer(index, "", None, error_from_status(response.error))
                else:
                    answer = response.response
                    yield StreamedAnswer(index, answer.model, answer.predictions[0], None)

    async def get_model(self, name: str, *, timeout_s: float | None = None) -> models_pb2.Model:
        """One model version, by any of its names."""
        return await self._call(self._stubs.models.Get, models_pb2.GetModelRequest(name=name), timeout_s)

    async def list_models(self, *, timeout_s: float | None = None) -> list[models_pb2.Model]:
        """All model versions, newest first."""
        request = models_pb2.ListModelsRequest(page_size=PAGE_SIZE)
        pages = self._pages(self._stubs.models.List, request, timeout_s)
        return [model async for page in pages for model in page.models]

    async def load_model(self, name: str, *, timeout_s: float | None = None) -> models_pb2.LoadModelResponse:
        """Bring a model into memory, where it stays until it is unloaded; tells what that did to the memory."""
        request = models_pb2.LoadModelRequest(name=name)
        return await self._call(self._stubs.models.Load, request, timeout_s or WORK_TIMEOUT_S)

    async def unload_model(self, name: str, *, timeout_s: float | None = None) -> models_pb2.UnloadModelResponse:
        """Take a model out of memory; it predicts again once it is loaded. Tells what that did to the memory."""
        request = models_pb2.UnloadModelRequest(name=name)
        return await self._call(self._stubs.models.Unload, request, timeout_s)

    async def set_alias(self, alias: str, version: str, *, timeout_s: float | None = None) -> models_pb2.Model:
        """Point an alias to a version.

        Args:
            alias: "models/{id}@{alias}".
            version: a version of the same model, by any of its names; "" removes the alias.
        """
        request = models_pb2.SetAliasRequest(alias=alias, version=version)
        return await self._call(self._stubs.models.SetAlias, request, timeout_s or WORK_TIMEOUT_S)

    async def delete_model(self, name: str, *, timeout_s: float | None = None) -> None:
        """Remove a version, or "models/{id}" with all its versions and aliases.

        Not tried again: a second try would not find it.
        """
        request = models_pb2.DeleteModelRequest(name=name)
        await self._call(self._stubs.models.Delete, request, timeout_s, repeatable=False)

    async def export_model(
        self,
        name: str,
        path: str | Path,
        *,
        format: str = "bundle",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> models_pb2.Model:
        """Write a model into a file; it appears whole or not at all.

        Args:
            path: the file; one that is there is replaced.
            format: "bundle" for an archive that `import_model` takes; "onnx" for an ONNX file that answers as
                `predict` does: "images", float32 [batch, 3, S, S] in 0…1, to "probabilities", [batch, classes].
            progress: called with (bytes written, bytes in all).

        Raises:
            InvalidArgumentError: names `format`, or a path that cannot be written.
            FailedPreconditionError: the server lacks what ONNX takes.
            DataLossError: what came is not what the server sent.
        """
        number = enum_number(models_pb2.ExportFormat, format, "format", "EXPORT_FORMAT_")
        request = models_pb2.ExportModelRequest(name=name, format=number)
        stream = self._transport.stream(self._stubs.models.Export, request, timeout_s or WORK_TIMEOUT_S)
        return await model_files.save(self._transport, stream, Path(path), progress)

    async def import_model(
        self,
        path: str | Path,
        model_id: str,
        *,
        request_id: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> models_pb2.Model:
        """Make a new version of an archive that `export_model` wrote.

        Args:
            path: the file.
            model_id: name part of the model, made if new.
            request_id: a UUID; made where absent. The same one returns the first result.
            progress: called with (bytes sent, bytes in all), in a thread of gRPC's.
        """
        archive = await self._transport.work(model_files.describe, Path(path))
        header = models_pb2.ImportHeader(
            request_id=request_id or str(uuid.uuid4()),
            model_id=model_id,
            size_bytes=archive.size_bytes,
            sha256=archive.sha256,
        )
        requests = model_files.import_requests(header, archive, progress)
        method = self._stubs.models.Import
        return await self._transport.upload(method, requests, timeout_s or WORK_TIMEOUT_S)
