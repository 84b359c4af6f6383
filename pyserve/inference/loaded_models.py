"""Models in memory: brought in when they are asked for or on command, under a budget, and truly out again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pyserve.errors import FailedPreconditionError
from pyserve.inference import memory
from pyserve.inference.bundle import load_bundle
from pyserve.inference.loading_cache import LoadingCache
from pyserve.inference.predictor import Predictor

if TYPE_CHECKING:
    from pyserve.config import Settings
    from pyserve.inference.model_info import ModelInfo
    from pyserve.inference.model_store import ModelStore

log = logging.getLogger(__name__)

_CPU_BATCH, _GPU_BATCH = 8, 32
# Times the size on disk: as they are there, folded, and packed for the kernels of small and of large batches. A
#     guess
# that makes room before a model is loaded; what it really takes is known afterwards.
_SIZE_IN_MEMORY = 6


@dataclass(frozen=True)
class MemoryChange:
    """Memory of the device that this process held before and after a load or unload, bytes."""

    before_bytes: int
    after_bytes: int


class LoadedModels:
    """Predictors by model version.

    A model that is asked for is loaded; the least recently used leave where the budget is short. One that was
    loaded on command stays until it is unloaded, and one that was unloaded is not loaded again but on command.
    The first calls for one model load it once and all wait for that; a load that fails leaves nothing behind.

    Args:
        store: where the models lie.
        settings: `max_models_bytes`, `max_batch_size`, `predict_threads`, `predict_dtype` and `max_image_pixels`
            are read.
        device: where models run; by default a GPU where there is one.
    """

    def __init__(self, store: ModelStore, settings: Settings, device: torch.device | str | None = None) -> None:
        self._store = store
        self._settings = settings
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype_name = settings.predict_dtype
        self._dtype: torch.dtype = getattr(torch, settings.predict_dtype)
        on_gpu = self.device.type == "cuda"
        self.max_batch_size = settings.max_batch_size or (_GPU_BATCH if on_gpu else _CPU_BATCH)
        self.budget_bytes = settings.max_models_bytes or memory.total_bytes(self.device) // 2
        self._cache: LoadingCache[str, Predictor] = LoadingCache(self.budget_bytes, _size)
        self._unloaded: set[str] = set()
        self._commands = threading.Lock()  # what a command tells of memory is of that command alone

    def find(self, name: str) -> Predictor | None:
        """The predictor of any of a model's names where it is in memory; quick, never loads.

        Raises:
            InvalidArgumentError, NotFoundError, DataLossError: see `ModelStore.resolve`.
        """
        return self._cache.find(self._store.resolve(name))

    def get(self, name: str) -> Predictor:
        """The predictor of any of a model's names, loaded where it is not in memory.

        Raises:
            FailedPreconditionError: it was unloaded.
            ResourceExhaustedError: models that stay loaded leave no room for it.
            What `ModelStore.get` and `load_bundle` raise.
        """
        info = self._store.get(name)
        if info.name in self._unloaded:
            raise FailedPreconditionError(f"{info.name} is unloaded: load it first")
        return self._get(info, pin=False)

    def load(self, name: str) -> tuple[Predictor, MemoryChange]:
        """Bring a model into memory, where it stays until it is unloaded.

        Raises:
            ResourceExhaustedError: models that stay loaded leave no room for it.
            What `ModelStore.get` and `load_bundle` raise.
        """
        info = self._store.get(name)
        with self._commands:
            before = memory.used_bytes(self.device)
            predictor = self._get(info, pin=True)
            self._unloaded.discard(info.name)
            return predictor, MemoryChange(before, memory.used_bytes(self.device))

    def unload(self, name: str) -> MemoryChange:
        """Take a model out of memory; calls that it is answering end first, those that come later are refused.

        Raises:
            What `ModelStore.get` raises.
        """
        info = self._store.get(name)
        with self._commands:
            before = memory.used_bytes(self.device)
            self._unloaded.add(info.name)
            self._cache.discard(info.name)
            memory.give_back()
            return MemoryChange(before, memory.used_bytes(self.device))

    def forget(self, version: str) -> None:
        """Let go of a version that is deleted."""
        self._unloaded.discard(version)
        if self._cache.discard(version):
            memory.give_back()

    def stand_in(self, name: str) -> Predictor | None:
        """The newest version in memory of the model that a name speaks of."""
        versions = [f"{name.partition('@')[0]}/versions/{number}" for number in self._store.versions(name)]
        found = (self._cache.find(version) for version in reversed(versions))
        return next((predictor for predictor in found if predictor is not None), None)

    def prove(self, folder: Path, name: str) -> None:
        """Load a bundle as a model here is loaded, and let it go again: it would serve.

        Raises:
            What `load_bundle` raises.
        """
        load_bundle(folder, self.device, name=name, dtype=self._dtype)
        memory.give_back()

    def is_loaded(self, version: str) -> bool:
        """Whether a version is in memory."""
        return any(predictor.name == version for predictor in self.loaded())

    def is_unloaded(self, version: str) -> bool:
        """Whether a version was unloaded on command."""
        return version in self._unloaded

    def loaded(self) -> Sequence[Predictor]:
        """The models in memory, least recently used first."""
        return self._cache.values()

    def _get(self, info: ModelInfo, *, pin: bool) -> Predictor:
        loads = False

        def load() -> Predictor:
            nonlocal loads
            loads = True
            bundle = load_bundle(info.folder, self.device, name=info.name, dtype=self._dtype)
            predictor = Predictor(
                bundle,
                threads=self._settings.predict_threads,
                max_image_pixels=self._settings.max_image_pixels,
                max_batch_size=self.max_batch_size,
            )
            predictor.warm_up(self.max_batch_size)
            log.info("loaded %s: %d bytes", info.name, bundle.memory_bytes)
            return predictor

        predictor = self._cache.get(info.name, load, weight=_SIZE_IN_MEMORY * info.size_bytes, pin=pin)
        if loads:
            memory.give_back()
        return predictor


def _size(predictor: Predictor) -> int:
    return predictor.bundle.memory_bytes
