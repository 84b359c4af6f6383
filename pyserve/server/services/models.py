"""`pyserve.v1.Models`: what trainings produced."""

from __future__ import annotations

from typing import Any

from pyserve.inference.model_store import ModelStore
from pyserve.server import convert, validate
from pyserve.server.pools import Pools
from pyserve.v1 import models_pb2, models_pb2_grpc


class ModelsService(models_pb2_grpc.ModelsServicer):
    """Models over gRPC."""

    def __init__(self, store: ModelStore, pools: Pools) -> None:
        self._store = store
        self._pools = pools

    async def Get(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.Model:
        """One model version."""
        name = validate.model_name(request.name)
        return convert.model(await self._pools.quick.run(self._store.get, name))

    async def List(self, request: models_pb2.ListModelsRequest, context: Any) -> models_pb2.ListModelsResponse:
        """A page of model versions."""
        infos, token = await self._pools.quick.run(self._store.list, request.page_size, request.page_token)
        return models_pb2.ListModelsResponse(models=[convert.model(i) for i in infos], next_page_token=token)
