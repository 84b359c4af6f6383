"""A bounded cache whose values take long to make: each is made once, whoever asks at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from pyserve.errors import InvalidArgumentError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LoadingCache(Generic[K, V]):
    """Least recently used values go first; safe to use from many threads.

    A value that is thrown out lives on for as long as somebody uses it.

    Args:
        capacity: most values kept, ≥ 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise InvalidArgumentError.field("capacity", capacity, "≥ 1")
        self._capacity = capacity
        self._entries: OrderedDict[K, Future[V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, load: Callable[[], V]) -> V:
        """The value of `key`, made by `load` where it is not there.

        Who asks while another thread makes it waits for that one. Where `load` raises, all who wait get its
        exception, nothing is kept, and the next one to ask tries again.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            else:
                mine: Future[V] = Future()
                self._entries[key] = mine
                self._throw_out()
        if entry is not None:
            return entry.result()
        return self._fill(key, mine, load)

    def discard(self, key: K) -> None:
        """Forget a value."""
        with self._lock:
            self._entries.pop(key, None)

    def keys(self) -> Sequence[K]:
        """What is there or being made, least recently used first."""
        with self._lock:
            return tuple(self._entries)

    def _fill(self, key: K, entry: Future[V], load: Callable[[], V]) -> V:
        try:
            value = load()
        except BaseException as error:
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.set_exception(error)
            raise
        entry.set_result(value)
        with self._lock:
            self._throw_out()
        return value

    def _throw_out(self) -> None:
        """Make room before the newest is made; what others make stays, even if it is too many for a while."""
        for key in [k for k, entry in self._entries.items() if entry.done()]:
            if len(self._entries) <= self._capacity:
                return
            del self._entries[key]
