"""`pyserve.v1.Datasets`: takes in, describes and removes datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from pyserve.data.catalog import Catalog
from pyserve.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from pyserve.server import convert, validate
from pyserve.server.ledger import Entry, RequestLedger
from pyserve.server.pools import Pools
from pyserve.server.receive import header, heard_out, receive
from pyserve.server.uploads import UploadPlan, Uploads
from pyserve.v1 import common_pb2, datasets_pb2, datasets_pb2_grpc

REGISTER, RELABEL = "Register", "Relabel"
PREVIEW_PIXELS = 512


class DatasetsService(datasets_pb2_grpc.DatasetsServicer):
    """Datasets over gRPC.

    Args:
        catalog: where datasets live.
        uploads: archives on their way in.
        ledger: remembers requests by id; the one that `uploads` uses.
        pools: threads for blocking work.
        users_of: names of the jobs that have not ended and use a dataset of the given names.
    """

    def __init__(
        self,
        catalog: Catalog,
        uploads: Uploads,
        ledger: RequestLedger,
        pools: Pools,
        users_of: Callable[[Sequence[str]], Sequence[str]],
    ) -> None:
        self._catalog = catalog
        self._uploads = uploads
        self._ledger = ledger
        self._pools = pools
        self._users_of = users_of

    async def Upload(self, request_iterator: Any, context: Any) -> datasets_pb2.Dataset:
        """Take in an archive."""
        messages = aiter(request_iterator)
        async with heard_out(messages):
            plan, options = _plan(await header(messages))

            def make(path: Path) -> str:
                return self._catalog.add_archive(plan.resource_id, path, options).name

            name = await receive(
                self._uploads, plan, messages, self._pools, ensure_free=self._ensure_free, make=make
            )
        return await self._describe(name)

    async def QueryUpload(self, request: datasets_pb2.QueryUploadRequest, context: Any) -> Any:
        """How far an upload came."""
        request_id = validate.request_id(request.request_id)
        if not request_id:
            raise InvalidArgumentError.field("request_id", "", "the UUID of an upload")
        committed, name = await self._pools.quick.run(self._uploads.query, request_id)
        if not name:
            return datasets_pb2.QueryUploadResponse(committed_bytes=committed)
        return datasets_pb2.QueryUploadResponse(committed_bytes=committed, dataset=await self._describe(name))

    async def Register(self, request: datasets_pb2.RegisterRequest, context: Any) -> datasets_pb2.Dataset:
        """Make a dataset of a folder that lies on the server already."""
        dataset_id = validate.resource_id(request.dataset_id, "dataset_id")
        if not request.path:
            raise InvalidArgumentError.field("path", "", "a folder under one of the server's dataset_roots")
        options = convert.scan_options(request.options, "options")
        request_id = validate.request_id(request.request_id)

        def register() -> str:
            self._ensure_free(dataset_id)
            return self._catalog.register(dataset_id, Path(request.path), options).name

        facts = {"dataset_id": dataset_id, "path": request.path, "options": asdict(options)}
        name = await self._pools.slow.run(self._ledger.once, request_id, Entry(REGISTER, facts), register)
        return await self._describe(name)

    async def Get(self, request: datasets_pb2.GetDatasetRequest, context: Any) -> datasets_pb2.Dataset:
        """One dataset."""
        return await self._describe(validate.dataset_name(request.name))

    async def GetPicture(self, request: datasets_pb2.GetPictureRequest, context: Any) -> common_pb2.Figure:
        """One picture, small enough to be shown."""
        name = validate.dataset_name(request.name)
        max_side = request.max_side if request.HasField("max_side") else PREVIEW_PIXELS
        if not 16 <= max_side <= 2048:
            raise InvalidArgumentError.field("max_side", max_side, "16…2048 pixels")

        def preview() -> common_pb2.Figure:
            data = self._catalog.preview(name, request.path, max_side)
            return common_pb2.Figure(name=f"{Path(request.path).stem}.jpg", media_type="image/jpeg", data=data)

        return await self._pools.pictures.run(preview)

    async def List(self, request: datasets_pb2.ListDatasetsRequest, context: Any) -> Any:
        """A page of datasets."""
        manifests, token = await self._pools.quick.run(self._catalog.list, request.page_size, request.page_token)
        return datasets_pb2.ListDatasetsResponse(
            datasets=[convert.dataset(manifest) for manifest in manifests], next_page_token=token
        )

    async def Relabel(self, request: datasets_pb2.RelabelRequest, context: Any) -> datasets_pb2.Dataset:
        """Make a new version from corrected labels."""
        name = validate.dataset_name(request.name)
        dataset_id = validate.resource_id(request.dataset_id, "dataset_id") if request.dataset_id else ""
        request_id = validate.request_id(request.request_id)
        labels: dict[str, str] = {}
        for correction in request.corrections:
            if correction.path in labels:
                expected = "each picture once"
                raise InvalidArgumentError.field("corrections.path", correction.path, expected)
            labels[correction.path] = correction.label
        removed = list(request.removed)
        facts = {"name": name, "labels": labels, "removed": removed, "dataset_id": dataset_id}

        def relabel() -> str:
            return self._catalog.relabel(name, labels, removed, dataset_id).name

        made = await self._pools.slow.run(self._ledger.once, request_id, Entry(RELABEL, facts), relabel)
        return await self._describe(made)

    async def Delete(self, request: datasets_pb2.DeleteDatasetRequest, context: Any) -> Empty:
        """Remove a dataset that no unfinished job needs."""
        name = validate.dataset_name(request.name)

        def delete() -> None:
            self._catalog.get(name)
            users = self._users_of([name])
            if users:
                raise FailedPreconditionError(
                    f"{name} is in use: wait for {', '.join(users[:5])} to end, or cancel them, first",
                    metadata={"jobs": ",".join(users[:5])},
                )
            self._catalog.delete(name)

        await self._pools.slow.run(delete)
        return Empty()

    def _ensure_free(self, dataset_id: str) -> None:
        try:
            self._catalog.get(f"datasets/{dataset_id}")
        except NotFoundError:
            return
        raise AlreadyExistsError(
            f"datasets/{dataset_id} exists already: choose another dataset_id, or delete it first",
            metadata={"resource": f"datasets/{dataset_id}"},
        )

    async def _describe(self, name: str) -> datasets_pb2.Dataset:
        return await self._pools.quick.run(lambda: convert.dataset(self._catalog.get(name)))


def _plan(message: datasets_pb2.UploadHeader) -> tuple[UploadPlan, Any]:
    options = convert.scan_options(message.options, "header.options")
    plan = UploadPlan(
        resource_id=validate.resource_id(message.dataset_id, "header.dataset_id"),
        size_bytes=message.size_bytes,
        sha256=message.sha256.lower(),
        request_id=validate.request_id(message.request_id, "header.request_id"),
        offset_bytes=message.offset_bytes,
        options=asdict(options),
    )
    return plan, options
