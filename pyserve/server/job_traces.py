"""Spans of jobs: made of a job's own log when its worker has ended, so that the worker knows nothing of traces."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pyserve.jobs.events import EpochDone, Event, JobState, PhaseStarted, StateChange
from pyserve.jobs.store import JobStore
from pyserve.server.tracing import Attribute, Tracing

if TYPE_CHECKING:
    from opentelemetry.context import Context

log = logging.getLogger(__name__)

_REMEMBERED = 10_000  # jobs whose calls are known; the oldest are forgotten first
_NS = 1_000_000_000


class JobTraces:
    """One span for each attempt of a job, a child of the call that queued it, and in it one for each phase.

    After a restart of the server the call is not known any more: the span begins a trace of its own.

    Args:
        tracing: gets the spans.
        store: of the jobs.
    """

    def __init__(self, tracing: Tracing, store: JobStore) -> None:
        self._tracing = tracing
        self._store = store
        self._parents: dict[str, Context] = {}
        self._lock = threading.Lock()

    def queued(self, name: str) -> None:
        """A job was queued by the call that runs here."""
        with self._lock:
            if len(self._parents) >= _REMEMBERED:
                del self._parents[next(iter(self._parents))]
            self._parents.setdefault(name, self._tracing.current())  # a repeated call gets the job of the first

    def ended(self, name: str) -> None:
        """The worker of a job has ended: tell how its attempt went."""
        try:
            record = self._store.get(name)
            events = _last_attempt(list(self._store.log(name)))
        except Exception:  # traces are no reason for a job to go wrong
            log.exception("the trace of %s cannot be made", name)
            return
        with self._lock:
            parent = self._parents.pop(name, None) or self._tracing.nobody()
        facts: dict[str, Attribute] = {"pyserve.job": name, "pyserve.attempt": record.attempt}
        queued, begun, end = events[0], _begin(events), events[-1]
        state = end.payload.state.value if isinstance(end.payload, StateChange) else "UNKNOWN"
        inside = self._tracing.add(
            f"job {record.kind}",
            _ns(queued),
            _ns(end),
            parent=parent,
            attributes=facts | {"pyserve.job_state": state},
        )
        self._tracing.add("queue", _ns(queued), _ns(begun), parent=inside, attributes=facts)
        for phase, until in _phases(events):
            assert isinstance(phase.payload, PhaseStarted)  # noqa: S101  _phases gives no others
            told = {"pyserve.phase": phase.payload.phase, "pyserve.epochs": phase.payload.epochs}
            self._tracing.add(
                f"phase {phase.payload.name}",
                _ns(phase),
                _ns(until),
                parent=inside,
                attributes=facts | told,
                events=list(_epochs(events, phase, until)),
            )


def _last_attempt(events: Sequence[Event]) -> Sequence[Event]:
    """From when it was queued last."""
    queued = [i for i, event in enumerate(events) if _is(event, JobState.QUEUED)]
    return events[queued[-1] if queued else 0 :]


def _begin(events: Sequence[Event]) -> Event:
    return next((event for event in events if _is(event, JobState.RUNNING)), events[-1])


def _phases(events: Sequence[Event]) -> Iterator[tuple[Event, Event]]:
    """Each phase's first event, and that which ends it."""
    starts = [event for event in events if isinstance(event.payload, PhaseStarted)]
    yield from zip(starts, [*starts[1:], events[-1]], strict=True)


def _epochs(events: Sequence[Event], begin: Event, end: Event) -> Iterator[tuple[str, int, dict[str, Attribute]]]:
    for event in events:
        if begin.seq < event.seq <= end.seq and isinstance(event.payload, EpochDone):
            metrics = {f"pyserve.{name}": value for name, value in event.payload.metrics.items()}
            yield "epoch", _ns(event), {"pyserve.epoch": event.payload.epoch, **metrics}


def _is(event: Event, state: JobState) -> bool:
    return isinstance(event.payload, StateChange) and event.payload.state is state


def _ns(event: Event) -> int:
    return int(event.time * _NS)
