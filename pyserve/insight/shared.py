"""Results that take long and are wanted again: made once, whoever asks at the same time, and each may give up."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from pyserve.errors import CancelledError
from pyserve.inference.loading_cache import LoadingCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
ShouldStop = Callable[[], bool]


class SharedResults(Generic[K, V]):
    """The latest results in memory, under a limit.

    Args:
        capacity: most weight kept.
        weigh: weight of a result; by default each weighs 1.
    """

    def __init__(self, capacity: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._cache: LoadingCache[K, V] = LoadingCache(capacity, weigh)

    def get(self, key: K, make: Callable[[], V], should_stop: ShouldStop | None = None) -> V:
        """The result of `key`, made by `make` where it is not there.

        Who asks while another one makes it waits for that. Where that one gives up (its caller is gone), who waits
        makes it instead.

        Args:
            make: raises CancelledError where `should_stop` says so.

        Raises:
            What `make` raises; then nothing is kept.
        """
        while True:
            try:
                return self._cache.get(key, make)
            except CancelledError:
                if should_stop is None or should_stop():
                    raise
