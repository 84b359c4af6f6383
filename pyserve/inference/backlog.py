"""Pictures that wait, and the rule by which free workers take them: decode one, run a batch, or wait for more.

Pure decisions without threads or clocks of their own; `batcher.Batcher` carries them out.

Workers decode and run the network alike, so that no core idles while there is either to do. A batch is closed when
it is full, or when no more can join it: nothing of its kind waits to be decoded. So batches grow with the backlog
and not with a timer. Only where a picture is being decoded at this moment, and no lane would be free for it later,
does a batch wait, and at most `max_delay_s`.

Everything is served in the order of arrival within its priority. A request of many pictures stands in that order
as if its pictures had come one full batch after another, so that it does not hold up the small ones behind it,
and they cannot hold it up for ever.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyserve.inference.work import Picture, Request

_BATCHES_AHEAD = 4


class Reason(str, Enum):
    """Why a batch was closed at the size it had."""

    FULL = "full"  # as many as a batch may have
    PREFERRED = "preferred"  # cut to a preferred size; more were waiting
    SHARED = "shared"  # its fair part: other lanes were free and took the rest
    DELAY = "delay"  # waited as long as it may for a picture that was being decoded
    DEADLINE = "deadline"  # did not wait for it: a deadline was too near
    EMPTY = "empty"  # all there was: nothing more waited or was being decoded


@dataclass(frozen=True)
class Policy:
    """How batches are made.

    Attributes:
        max_batch_size: most pictures in one.
        preferred_sizes: a backlog is cut to the largest of these that it fills; empty: any size will do.
        max_delay_s: longest wait for a picture that is being decoded, seconds.
        lanes: batches that are in the network at once.
    """

    max_batch_size: int
    preferred_sizes: tuple[int, ...] = ()
    max_delay_s: float = 0.002
    lanes: int = 1


@dataclass(frozen=True)
class Decode:
    """Decode this picture, then call `Backlog.decoded` or `Backlog.undecodable`."""

    picture: Picture


@dataclass(frozen=True)
class Batch:
    """Run the network on these pictures of one kind, then call `Backlog.batch_done`.

    `parts`: into how many such batches the free workers share the backlog, this one included.
    """

    pictures: list[Picture]
    reason: Reason
    parts: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do before this time, or before something changes."""

    until: float = math.inf


class _Kind:
    """Pictures that may share a batch."""

    def __init__(self) -> None:
        self.undecoded = 0
        self.decoding = 0
        self.ready: list[tuple[tuple[float, ...], Picture]] = []
        self.oldest_ready = math.inf


class _Candidate(NamedTuple):
    order: tuple[float, ...]
    kind: _Kind
    reason: Reason


class Backlog:
    """All pictures of one device that are not in the network yet. Not safe for threads: its owner has a lock.

    Attributes:
        late: requests that were found unable to be in time, for the owner to fail; it empties the list.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kinds: dict[Hashable, _Kind] = {}
        self._undecoded: list[tuple[tuple[float, ...], Picture]] = []
        self._running = 0
        self.late: list[Request] = []

    @property
    def has_more(self) -> bool:
        """Whether another worker might find something to do."""
        return bool(self._undecoded) or any(kind.ready for kind in self._kinds.values())

    def add(self, pictures: Iterable[Picture], now: float) -> None:
        """Take pictures in; those with a row need no decoding."""
        for picture in pictures:
            kind = self._kinds.setdefault(picture.kind, _Kind())
            if picture.row is None:
                kind.undecoded += 1
                heappush(self._undecoded, (picture.order, picture))
            else:
                self._push_ready(kind, picture, now)

    def decoded(self, picture: Picture, now: float) -> None:
        """A picture that was given out to be decoded has its row."""
        kind = self._kinds[picture.kind]
        kind.decoding -= 1
        self._push_ready(kind, picture, now)

    def undecodable(self, picture: Picture) -> None:
        """A picture that was given out to be decoded is none, or nobody wants it any more."""
        self._kinds[picture.kind].decoding -= 1
        self._forget_if_empty(picture.kind)

    def batch_done(self, batch: Batch) -> None:
        """A batch that was given out has left the network."""
        self._running -= 1

    def choose(self, now: float, idle: int) -> Decode | Batch | Wait:
        """What a free worker does.

        Args:
            now: seconds, of the clock that deadlines are told in.
            idle: other workers that have nothing to do.
        """
        head = self._next_undecoded(now)  # first, for it drops what would hold up a batch for nothing
        candidate, until = None, math.inf
        if self._running < self._policy.lanes:
            candidate, until = self._closable(now)
        if head is not None and (candidate is None or head.order < candidate.order) and self._has_room(head):
            return self._give_out(head)
        if candidate is None:
            return Wait(until)
        return self._close(candidate, now, idle)

    def _closable(self, now: float) -> tuple[_Candidate | None, float]:
        """The first kind whose batch can be closed, and when else one can be."""
        best, until = None, math.inf
        for name in list(self._kinds):
            kind = self._kinds[name]
            self._drop_useless(kind.ready, now)
            if not kind.ready:
                self._forget_if_empty(name)
                continue
            reason, when = self._reason(kind, now)
            if reason is None:
                until = min(until, when)
            elif best is None or kind.ready[0][0] < best.order:
                best = _Candidate(kind.ready[0][0], kind, reason)
        return best, until

    def _reason(self, kind: _Kind, now: float) -> tuple[Reason | None, float]:
        """Why a kind's batch can be closed now, or None and when it will have to be."""
        if len(kind.ready) >= self._policy.max_batch_size:
            return Reason.FULL, now
        if kind.undecoded:
            return None, math.inf  # whoever asks decodes them first
        free_lanes = self._policy.lanes - self._running
        if not kind.decoding or free_lanes >= len(kind.ready) + kind.decoding:
            return Reason.EMPTY, now
        end = kind.oldest_ready + self._policy.max_delay_s
        latest = min(_latest_start(picture) for _, picture in kind.ready)
        if now >= min(end, latest):
            return (Reason.DELAY if end <= latest else Reason.DEADLINE), now
        return None, min(end, latest)

    def _close(self, candidate: _Candidate, now: float, idle: int) -> Batch:
        """Take a batch's pictures out; the first one is known to be of use."""
        kind, policy = candidate.kind, self._policy
        waiting = len(kind.ready)
        lanes = min(idle + 1, policy.lanes - self._running)
        size = min(math.ceil(waiting / lanes), policy.max_batch_size)
        size = max([s for s in policy.preferred_sizes if s <= size], default=size)
        pictures: list[Picture] = []
        while kind.ready and len(pictures) < size:
            pictures.append(heappop(kind.ready)[1])
            self._drop_useless(kind.ready, now)
        if not kind.ready:
            kind.oldest_ready = math.inf
        self._running += 1
        parts = min(math.ceil(waiting / len(pictures)), lanes)
        return Batch(pictures, self._told(candidate.reason, len(pictures), waiting, lanes), parts)

    def _told(self, reason: Reason, size: int, waiting: int, lanes: int) -> Reason:
        """The reason for the size that the batch got in the end."""
        if size == self._policy.max_batch_size:
            return Reason.FULL
        if size in self._policy.preferred_sizes and size < math.ceil(waiting / lanes):
            return Reason.PREFERRED
        if size < waiting:
            return Reason.SHARED
        return reason

    def _has_room(self, picture: Picture) -> bool:
        """Whether decoding does not run too far ahead of the network: decoded pictures are large."""
        kind = self._kinds[picture.kind]
        return len(kind.ready) + kind.decoding < _BATCHES_AHEAD * self._policy.max_batch_size

    def _give_out(self, picture: Picture) -> Decode:
        heappop(self._undecoded)
        kind = self._kinds[picture.kind]
        kind.undecoded -= 1
        kind.decoding += 1
        return Decode(picture)

    def _next_undecoded(self, now: float) -> Picture | None:
        while self._undecoded:
            picture = self._undecoded[0][1]
            if not self._is_useless(picture.request, picture.request.is_over, now):
                return picture
            heappop(self._undecoded)
            self._kinds[picture.kind].undecoded -= 1
            self._forget_if_empty(picture.kind)
        return None

    def _push_ready(self, kind: _Kind, picture: Picture, now: float) -> None:
        if not kind.ready:
            kind.oldest_ready = now
        heappush(kind.ready, (picture.order, picture))

    def _drop_useless(self, ready: list[tuple[tuple[float, ...], Picture]], now: float) -> None:
        """Drop pictures from the head of a queue that are not worth the network's time."""
        while ready and self._is_useless(ready[0][1].request, not ready[0][1].request.needs_network, now):
            heappop(ready)

    def _is_useless(self, request: Request, unwanted: bool, now: float) -> bool:
        """Whether work on a request is in vain, for nobody wants it or it will be late; that is noted."""
        if not unwanted and not request.can_be_in_time(now):
            self.late.append(request)
            return True
        return unwanted

    def _forget_if_empty(self, name: Hashable) -> None:
        kind = self._kinds.get(name)
        if kind is not None and not (kind.ready or kind.undecoded or kind.decoding):
            del self._kinds[name]


def _latest_start(picture: Picture) -> float:
    """When a pass must begin to be in time, as far as the model's speed is known."""
    return picture.request.terms.deadline - picture.request.predictor.statistics.picture_s
