"""What all prediction services share: finding a model, queueing its pictures, waiting for the answer."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from contextlib import nullcontext
from typing import Any

import numpy as np

from pyserve.config import Settings
from pyserve.errors import PyserveError, ResourceExhaustedError
from pyserve.inference.batcher import Batcher
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.predictor import Predictor, Probabilities
from pyserve.inference.work import Pictures, Stages, Terms
from pyserve.server.pools import Pools
from pyserve.server.tracing import Tracing

log = logging.getLogger(__name__)

STREAM_LIMIT = 64  # requests of one stream that are worked on at once
MANY_PROBABILITIES = 20_000  # to be ranked and packed: more would hold up the other calls


def deadline_of(context: Any, timeout_s: float = math.inf) -> float:
    """When a call's answer is worthless, in the clock of `time.monotonic`.

    Args:
        context: of the call.
        timeout_s: what the request itself allows.
    """
    left_s = context.time_remaining()
    return time.monotonic() + min(timeout_s, math.inf if left_s is None else left_s)


class Prediction:
    """Models by name, and their answers.

    Args:
        models: those in memory.
        batcher: answers.
        pools: threads for loading.
        settings: `max_predict_images` is read.
        tracing: is told how requests fared; None for no traces.
    """

    def __init__(
        self,
        models: LoadedModels,
        batcher: Batcher,
        pools: Pools,
        settings: Settings,
        tracing: Tracing | None = None,
    ) -> None:
        self.models = models
        self._tracing = tracing
        self.batcher = batcher
        self._pools = pools
        self._max_images = settings.max_predict_images
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def model(self, name: str) -> Predictor:
        """The model of a name, loaded where it is not in memory.

        While an older version is answering, it goes on until a newer one that has appeared is loaded.

        Raises:
            What `LoadedModels.get` raises.
        """
        found = self.models.find(name)
        if found is not None:
            return found
        if "/versions/" not in name and "@" not in name:
            older = self.models.stand_in(name)
            if older is not None and self.batcher.unanswered(older)[0]:
                self._load_meanwhile(name)
                return older
        with nullcontext() if self._tracing is None else self._tracing.span("load"):
            return await self._pools.slow.run(self.models.get, name)

    async def loaded(self, name: str) -> None:
        """Return when the version that a name means now is in memory, or the attempt to load it has ended."""
        if (loading := self._loading.get(name)) is not None:
            await loading

    def check_count(self, count: int, field: str) -> None:
        """Refuse a request of too many pictures.

        Raises:
            ResourceExhaustedError: names `field`.
        """
        if count > self._max_images:
            raise ResourceExhaustedError.field(
                field, f"{count} pictures", f"at most {self._max_images}, the server's max_predict_images"
            )

    async def answer(self, model: Predictor, pictures: Pictures, terms: Terms) -> Probabilities:
        """Probabilities, float32 [N, classes]; a caller that is cancelled takes its pictures out of the queue.

        Args:
            pictures: encoded files, or an array of prepared pictures in any layout; not too many.
            terms: how.

        Raises:
            InvalidArgumentError: an array that the model does not take.
            What `Batcher.submit` raises and gives.
        """
        if isinstance(pictures, np.ndarray):  # in a thread: it looks at every value
            pictures = await self._pools.quick.run(model.check_tensor, pictures, terms.field)
        if self._tracing is None:
            return await self.batcher.predict(model, pictures, terms)
        stages = Stages()
        try:
            return await self.batcher.predict(model, pictures, dataclasses.replace(terms, stages=stages))
        finally:
            self._tracing.prediction(model.name, stages)

    def _load_meanwhile(self, name: str) -> None:
        if name in self._loading:
            return

        async def load() -> None:
            try:
                await self._pools.slow.run(self.models.get, name)
            except PyserveError as error:
                log.warning("the version before goes on: %s", error)
            finally:
                del self._loading[name]

        self._loading[name] = asyncio.create_task(load())
