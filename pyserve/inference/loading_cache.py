"""A bounded cache whose values take long to make: each is made once, whoever asks at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pyserve.errors import InvalidArgumentError, ResourceExhaustedError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass
class _Entry(Generic[V]):
    weight: int
    pinned: bool = False
    future: Future[V] = field(default_factory=Future)

    @property
    def is_ready(self) -> bool:
        return self.future.done() and self.future.exception() is None


class LoadingCache(Generic[K, V]):
    """Least recently used values go first; safe to use from many threads.

    A value that is thrown out lives on for as long as somebody uses it.

    Args:
        capacity: most weight kept, ≥ 1; a single value may exceed it, alone.
        weigh: weight of a value at present, once it is made; by default each weighs 1.
    """

    def __init__(self, capacity: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        if capacity < 1:
            raise InvalidArgumentError.field("capacity", capacity, "≥ 1")
        self._capacity = capacity
        self._weigh = weigh
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, load: Callable[[], V], *, weight: int = 1, pin: bool = False) -> V:
        """The value of `key`, made by `load` where it is not there.

        Who asks while another thread makes it waits for that one. Where `load` raises, all who wait get its
        exception, nothing is kept, and the next one to ask tries again.

        Args:
            weight: what it will weigh, as far as that is known before it is made.
            pin: keep it until it is discarded, whatever else is wanted; weights are bytes then.

        Raises:
            ResourceExhaustedError: what is pinned leaves no room for it.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry.pinned = entry.pinned or pin
            else:
                mine = _Entry[V](weight, pin)
                self._refuse_beyond_pinned(weight)
                self._entries[key] = mine
                self._throw_out()
        if entry is not None:
            return entry.future.result()
        return self._fill(key, mine, load)

    def find(self, key: K) -> V | None:
        """The value, where it is there; counts as a use."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.is_ready:
                return None
            self._entries.move_to_end(key)
            return entry.future.result()

    def discard(self, key: K) -> bool:
        """Forget a value, pinned or not; whether it was there."""
        with self._lock:
            return self._entries.pop(key, None) is not None

    def keys(self) -> Sequence[K]:
        """What is there or being made, least recently used first."""
        with self._lock:
            return tuple(self._entries)

    def values(self) -> Sequence[V]:
        """What is there, least recently used first."""
        with self._lock:
            return tuple(entry.future.result() for entry in self._entries.values() if entry.is_ready)

    def _fill(self, key: K, entry: _Entry[V], load: Callable[[], V]) -> V:
        try:
            value = load()
        except BaseException as error:
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.future.set_exception(error)
            raise
        entry.future.set_result(value)
        with self._lock:
            self._throw_out()
        return value

    def _refuse_beyond_pinned(self, weight: int) -> None:
        pinned = {str(key): entry.weight for key, entry in self._entries.items() if entry.pinned}
        if pinned and sum(pinned.values()) + weight > self._capacity:
            raise ResourceExhaustedError(
                f"no room for {weight} bytes: the limit is {self._capacity}, and {', '.join(pinned)} stay loaded "
                f"with {sum(pinned.values())}: unload one first",
                metadata={"limit_bytes": str(self._capacity)},
            )

    def _throw_out(self) -> None:
        """Make room before the newest is made; what others make stays, even if it is too much for a while."""
        for entry in self._entries.values():
            if entry.is_ready:  # values may grow in use
                entry.weight = self._weigh(entry.future.result())
        last = next(reversed(self._entries), None)
        for key in [k for k, e in self._entries.items() if e.future.done() and not e.pinned and k != last]:
            if sum(entry.weight for entry in self._entries.values()) <= self._capacity:
                return
            del self._entries[key]
