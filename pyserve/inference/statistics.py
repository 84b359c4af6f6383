"""What a loaded model has done: requests, stages, batches and why each had its size. Counted once, told by all.

Metrics, the open inference protocol's `ModelStatistics` and the batcher's own estimates read the same numbers.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

# Upper bounds, seconds; from a small network on a GPU to a long queue on a small processor.
SECONDS_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_MEMORY = 0.9  # weight of the past in the running mean of a pass's time


@dataclass
class Total:
    """How often something happened, and how long it took in all, seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count `count` that took `seconds` each."""
        self.count += count
        self.seconds += seconds * count


@dataclass
class Histogram:
    """Values by size, as Prometheus wants them.

    Attributes:
        bounds: upper bounds of the buckets, ascending.
        counts: values in each bucket, not cumulative; the last one holds those above all bounds.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value; one that equals a bound belongs below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, values up to it), the last bound "+Inf"."""
        pairs, count = [], 0
        for bound, here in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            count += here
            pairs.append((bound, count))
        return pairs


@dataclass
class Figures:
    """The numbers of one model since it was loaded; `ModelStatistics.snapshot` gives a copy that holds still.

    Attributes:
        success, failure: requests answered, and not answered, from their arrival on.
        queue: requests' time without work on any of their pictures, from arrival to their last batch.
        decode: pictures.
        batches: passes through the network, by number of pictures.
        closed: the same passes, by the reason for which the batch was closed (`backlog.Reason`).
        latency: seconds from a request's arrival to its answer.
        last_time: when the last pass ended, seconds since the epoch; 0 for never.
    """

    success: Total = field(default_factory=Total)
    failure: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    decode: Total = field(default_factory=Total)
    batches: dict[int, Total] = field(default_factory=dict)
    closed: dict[str, Total] = field(default_factory=dict)
    latency: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    last_time: float = 0.0

    @property
    def pictures(self) -> int:
        """Pictures that went through the network."""
        return sum(size * total.count for size, total in self.batches.items())

    @property
    def passes(self) -> Total:
        """All passes through the network."""
        totals = self.batches.values()
        return Total(sum(t.count for t in totals), sum(t.seconds for t in totals))


class ModelStatistics:
    """Figures that many threads add to."""

    def __init__(self) -> None:
        self._figures = Figures()
        self._lock = threading.Lock()
        self._picture_s = 0.0

    @property
    def picture_s(self) -> float:
        """Running mean of the network's time for a picture, seconds; 0 before the first pass."""
        return self._picture_s

    def snapshot(self) -> Figures:
        """The figures at this moment."""
        with self._lock:
            return deepcopy(self._figures)

    def decoded(self, seconds: float) -> None:
        """A picture was decoded, or found to be none."""
        with self._lock:
            self._figures.decode.add(seconds)

    def batch_done(self, size: int, reason: str, seconds: float) -> None:
        """A batch went through the network."""
        picture_s = seconds / size
        with self._lock:
            self._figures.batches.setdefault(size, Total()).add(seconds)
            self._figures.closed.setdefault(reason, Total()).add(seconds)
            self._figures.last_time = time.time()
            self._picture_s = _MEMORY * (self._picture_s or picture_s) + (1 - _MEMORY) * picture_s

    def answered(self, latencies: Sequence[tuple[float, float]]) -> None:
        """Requests were answered: seconds since the arrival of each, and how much of that it waited."""
        with self._lock:
            for seconds, waited in latencies:
                self._figures.success.add(seconds)
                self._figures.queue.add(waited)
                self._figures.latency.add(seconds)

    def failed(self, seconds: float) -> None:
        """A request got an error, or nobody wants its answer any more."""
        with self._lock:
            self._figures.failure.add(seconds)
