"""Deletes what the settings say need not be kept (see `pyserve.jobs.retention`, which decides)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from pyserve import paging
from pyserve.config import Settings
from pyserve.data.staging import remove_folder
from pyserve.errors import AbortedError, FailedPreconditionError, NotFoundError
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_info import ModelInfo
from pyserve.inference.model_store import ModelStore
from pyserve.jobs.events import TERMINAL
from pyserve.jobs.paths import checkpoints_folder
from pyserve.jobs.records import JobRecord
from pyserve.jobs.retention import removable_checkpoints, removable_jobs, removable_versions
from pyserve.jobs.scheduler import Scheduler
from pyserve.jobs.store import JobStore

log = logging.getLogger(__name__)

T = TypeVar("T")


class Retention:
    """The rules of one server.

    Args:
        store, scheduler: the jobs; a job is deleted through the scheduler, which knows who works on it.
        model_store, models: the models on disk and in memory.
        settings: `keep_jobs`, `keep_models`, `keep_checkpoints` and the data folder.
    """

    def __init__(
        self,
        store: JobStore,
        scheduler: Scheduler,
        model_store: ModelStore,
        models: LoadedModels,
        settings: Settings,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._model_store = model_store
        self._models = models
        self._settings = settings

    async def apply(self) -> None:
        """Delete what need not be kept; what comes into use meanwhile stays."""
        records = await asyncio.to_thread(lambda: list(_pages(self._store.list)))
        if self._settings.keep_models is not None:
            await asyncio.to_thread(self._remove_versions, records, self._settings.keep_models)
        if self._settings.keep_jobs is not None:
            kept = await asyncio.to_thread(self._kept_models, records)
            for name in removable_jobs(records, self._settings.keep_jobs, kept):
                with suppress(NotFoundError, FailedPreconditionError, AbortedError):
                    await self._scheduler.delete(name)
                    log.info("%s is deleted: keep_jobs is %d", name, self._settings.keep_jobs)
        if self._settings.keep_checkpoints is not None:
            await asyncio.to_thread(self._remove_checkpoints, records, self._settings.keep_checkpoints)

    def _remove_versions(self, records: Sequence[JobRecord], keep: int) -> None:
        infos = list(_pages(self._model_store.list))
        unfinished = {record.name for record in records if record.state not in TERMINAL}
        used = self._used(records)
        for info in infos:  # a job that ends just now has stored its model already
            if self._models.is_loaded(info.name) or info.provenance.get("job") in unfinished:
                used.add(info.name)
        for name in removable_versions(infos, keep, used):
            with suppress(NotFoundError, FailedPreconditionError):
                for version in self._model_store.delete(name):
                    self._models.forget(version)
                log.info("%s is deleted: keep_models is %d", name, keep)

    def _remove_checkpoints(self, records: Sequence[JobRecord], keep: int) -> None:
        for name in removable_checkpoints(records, keep):
            with suppress(FileNotFoundError):
                remove_folder(checkpoints_folder(self._settings.data_dir.resolve(), name))
                log.info("the checkpoints of %s are deleted: keep_checkpoints is %d", name, keep)

    def _kept_models(self, records: Sequence[JobRecord]) -> set[str]:
        infos: Iterator[ModelInfo] = _pages(self._model_store.list)
        return self._used(records) | {info.name for info in infos if info.aliases}

    def _used(self, records: Sequence[JobRecord]) -> set[str]:
        """Versions whose weights a job begins with that has not ended for good."""
        used = set()
        for record in records:
            weights = record.training.weights
            if record.state not in TERMINAL and weights.startswith("models/"):
                with suppress(NotFoundError):
                    used.add(self._model_store.resolve(weights))
        return used


def _pages(read: Callable[[int, str], tuple[Sequence[T], str]]) -> Iterator[T]:
    """All that a paged list holds."""
    token = ""
    while True:
        page, token = read(paging.MOST, token)
        yield from page
        if not token:
            return
