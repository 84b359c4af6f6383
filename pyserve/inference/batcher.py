"""Workers that decode pictures and run networks, in batches made of whatever requests wait.

One batcher serves all models of a device. On a CPU there are as many workers as cores for prediction; each of
them decodes pictures and runs networks as `backlog.Backlog` decides, with one thread while there is work for
all, and with the threads of those that have none otherwise. On a GPU there is one more for each lane: they wait
for the device most of the time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyserve.errors import (
    DataError,
    DeadlineExceededError,
    InternalError,
    PyserveError,
    ResourceExhaustedError,
    UnavailableError,
)
from pyserve.inference.backlog import Backlog, Batch, Decode, Policy, Wait
from pyserve.inference.work import DEFAULT_TERMS, Picture, Pictures, Request, Terms, resolve

if TYPE_CHECKING:
    from pyserve.inference.predictor import Predictor, Probabilities

log = logging.getLogger(__name__)

_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 0.05, 10.0
# A request is refused for its deadline only where it would be late even if all went twice as fast as it does.
_OPTIMISM = 0.5


class Batcher:
    """Predicts for many callers at once; all methods may be called from any thread.

    Args:
        policy: how batches are made.
        threads: cores for decoding, and for the network where it runs on them.
        max_requests: requests that may wait or be worked on; one more is refused.
        max_bytes: size of their pictures together, likewise.
        on_cpu: whether the networks run on the cores.
    """

    def __init__(
        self, policy: Policy, *, threads: int, max_requests: int, max_bytes: int, on_cpu: bool = True
    ) -> None:
        self.policy = policy
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._on_cpu = on_cpu
        self._backlog = Backlog(policy)
        self._lock = threading.Lock()
        self._requests: set[Request] = set()
        self._bytes = 0
        # Of the workers that have nothing to do the one that worked last is woken first: its caches, and the
        # threads that help it with a pass, are warm.
        self._idle: list[threading.Condition] = []
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"pyserve-predict-{i}", daemon=True)
            for i in range(threads if on_cpu else threads + policy.lanes)
        ]
        for worker in self._workers:
            worker.start()

    def submit(
        self, predictor: Predictor, pictures: Pictures, terms: Terms = DEFAULT_TERMS
    ) -> Future[Probabilities]:
        """Queue pictures.

        Args:
            predictor: the model.
            pictures: encoded files, or an array that `Predictor.check_tensor` gave; not to be changed any more.
            terms: how.

        Returns:
            float32 [N, classes]. Cancelling it takes what has not begun out of the queue. Its error is an
            InvalidArgumentError that names every bad picture, a DeadlineExceededError, an UnavailableError where
            the batcher is closed meanwhile, or an InternalError.

        Raises:
            ResourceExhaustedError: too many requests wait; says when to try again.
            DeadlineExceededError: the answer cannot be there in time.
            UnavailableError: the batcher is closed.
        """
        future: Future[Probabilities] = Future()
        self._queue(Request(predictor, pictures, future, terms, time.monotonic()))
        return future

    async def predict(
        self, predictor: Predictor, pictures: Pictures, terms: Terms = DEFAULT_TERMS
    ) -> Probabilities:
        """Queue pictures and wait: as `submit`, but on an event loop, which is woken once for a whole batch."""
        future: asyncio.Future[Probabilities] = asyncio.get_running_loop().create_future()
        self._queue(Request(predictor, pictures, future, terms, time.monotonic()))
        return await future

    def unanswered(self, predictor: Predictor | None = None) -> tuple[int, int]:
        """Requests without an answer yet, of one model or of all, and their pictures without one."""
        with self._lock:
            waiting = [r for r in self._requests if predictor is None or r.predictor is predictor]
            return len(waiting), sum(request.unanswered for request in waiting)

    def close(self) -> None:
        """Refuse new requests and fail those that wait; return when the workers have ended."""
        with self._lock:
            self._closed = True
            stopped = UnavailableError("the server stopped before the pictures were predicted")
            waiting = [request for request in self._requests if request.settle(stopped)]
            while self._idle:
                self._wake_one()
        self._end(waiting)
        for worker in self._workers:
            worker.join()

    def _queue(self, request: Request) -> None:
        if not request.count and request.settle():
            request.resolve()
            return
        with self._lock:
            self._admit(request)
            self._requests.add(request)
            self._bytes += request.size_bytes
            self._backlog.add(request.split(self.policy.max_batch_size), request.arrival)
            self._wake_one()  # which wakes the next where there is more to do
        request.future.add_done_callback(lambda _: self._left(request))

    # Admission

    def _admit(self, request: Request) -> None:
        if self._closed:
            raise UnavailableError("the server is stopping")
        if len(self._requests) >= self._max_requests:
            raise self._exhausted(f"too many requests wait: the limit is {self._max_requests}", request)
        if self._requests and self._bytes + request.size_bytes > self._max_bytes:
            raise self._exhausted(f"too many pictures wait: the limit is {self._max_bytes} bytes", request)
        if math.isinf(request.terms.deadline):
            return
        left_s, ahead_s = request.terms.deadline - request.arrival, self._ahead_s(request)
        if left_s <= 0 or _OPTIMISM * ahead_s > left_s:
            raise DeadlineExceededError(
                f"the answer cannot be there in time: {max(left_s, 0) * 1e3:.0f} ms are left, "
                f"and what waits before it takes about {ahead_s * 1e3:.0f} ms"
            )

    def _ahead_s(self, request: Request) -> float:
        """About how long all that is served before a new request takes."""
        seconds = sum(
            other.unanswered * other.predictor.statistics.picture_s
            for other in self._requests
            if other.terms.priority <= request.terms.priority
        )
        return seconds / self.policy.lanes

    def _exhausted(self, message: str, request: Request) -> ResourceExhaustedError:
        # When half of the queue is done there is room for those who come back.
        delay_s = min(max(self._ahead_s(request) / 2, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        limits = {"limit": str(self._max_requests), "limit_bytes": str(self._max_bytes)}
        return ResourceExhaustedError(message, retry_delay_s=delay_s, metadata=limits)

    def _end(self, settled: list[Request]) -> None:
        """Requests that are decided on leave, and their callers are told."""
        if not settled:
            return
        with self._lock:
            for request in settled:
                self._forget(request)
        resolve(settled)

    def _forget(self, request: Request) -> None:
        self._requests.discard(request)
        self._bytes -= request.size_bytes
        request.release()

    def _left(self, request: Request) -> None:
        """A request's future is done: by its caller, unless it was settled."""
        if request.is_settled:
            return
        with self._lock:
            self._forget(request)
        request.predictor.statistics.failed(time.monotonic() - request.arrival)

    # Workers

    def _wake_one(self) -> None:
        """Wake a worker, if one is idle; the lock is held."""
        if self._idle:
            self._idle.pop().notify()

    def _work(self) -> None:
        threads = 0
        wake = threading.Condition(self._lock)
        while (choice := self._next(wake)) is not None:
            if isinstance(choice, Decode):
                self._decode(choice.picture)
                continue
            wanted = max((len(self._idle) + 1) // choice.parts, 1) if self._on_cpu else 1
            if wanted != threads:
                torch.set_num_threads(wanted)  # of what this thread calls; others keep theirs
                threads = wanted
            self._run(choice)

    def _next(self, wake: threading.Condition) -> Decode | Batch | None:
        """What this worker is to do; None where the batcher is closed.

        Args:
            wake: the worker's own.
        """
        while True:
            with self._lock:
                if self._closed:
                    return None
                now = time.monotonic()
                choice = self._backlog.choose(now, len(self._idle))
                late = [request for request in self._backlog.late if request.settle(_late())]
                self._backlog.late.clear()
                if not isinstance(choice, Wait):
                    if self._idle and self._backlog.has_more:
                        self._wake_one()
                elif not late:
                    self._idle.append(wake)
                    wake.wait(None if math.isinf(choice.until) else max(choice.until - now, 0))
                    if wake in self._idle:  # its time was up
                        self._idle.remove(wake)
                    continue
            self._fail(late)
            if not isinstance(choice, Wait):
                return choice

    def _decode(self, picture: Picture) -> None:
        request, fault = picture.request, ""
        begin = time.monotonic()
        try:
            picture.row = request.predictor.decode(request.encoded(picture.index))
        except DataError as error:
            fault = error.message
        except IndexError:  # the request is over, and its pictures are gone
            fault = "is not wanted any more"
        except Exception:
            log.exception("decoding a picture failed")
            fault = "cannot be decoded: an unexpected error"
        end = time.monotonic()
        picture.decode_s = end - begin
        request.predictor.statistics.decoded(picture.decode_s)
        with self._lock:
            if request.terms.stages is not None:
                request.terms.stages.decoded.append((begin, end))
            if fault:
                self._backlog.undecodable(picture)
            else:
                self._backlog.decoded(picture, end)
            fails = request.picture_decoded(picture.index, fault) and request.settle(request.fault())
        if fails:
            self._fail([request])

    def _run(self, batch: Batch) -> None:
        request = batch.pictures[0].request
        predictor = request.predictor
        begin = time.monotonic()
        try:
            rows = torch.from_numpy(np.stack([picture.row for picture in batch.pictures]))
            answers = predictor.probabilities(rows, tta=request.terms.tta)
        except Exception as error:
            self._batch_failed(batch, error)
            return
        end = time.monotonic()
        with self._lock:
            self._backlog.batch_done(batch)
            for stages in {id(s): s for p in batch.pictures if (s := p.request.terms.stages) is not None}.values():
                stages.passes.append((begin, end, len(batch.pictures)))
            done = [
                picture
                for picture, row in zip(batch.pictures, answers, strict=True)
                if picture.request.picture_answered(picture.index, row) and picture.request.settle()
            ]
        predictor.statistics.batch_done(len(batch.pictures), batch.reason.value, end - begin)
        predictor.statistics.answered(
            [(end - p.request.arrival, begin - p.request.arrival - p.decode_s) for p in done]
        )
        self._end([picture.request for picture in done])

    def _batch_failed(self, batch: Batch, error: Exception) -> None:
        """The network failed: every request of the batch does, and no other."""
        name = batch.pictures[0].request.predictor.name
        log.error("%s failed on a batch of %d", name, len(batch.pictures), exc_info=error)
        with self._lock:
            self._backlog.batch_done(batch)
            failed = [picture.request for picture in batch.pictures if picture.request.settle(_as_ours(error))]
        self._fail(failed)

    def _fail(self, settled: list[Request]) -> None:
        now = time.monotonic()
        for request in settled:
            request.predictor.statistics.failed(now - request.arrival)
        self._end(settled)


def _late() -> DeadlineExceededError:
    return DeadlineExceededError("the call's deadline passed before the model had answered")


def _as_ours(error: Exception) -> PyserveError:
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        message = "memory ran out in the network: send fewer pictures at once"
        return ResourceExhaustedError(message, retry_delay_s=1.0)
    return InternalError("the model failed on these pictures; the server's log tells more")
