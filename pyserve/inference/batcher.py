"""Workers that decode pictures and run networks, in batches made of whatever requests wait.

One batcher serves all models of a device. On a CPU there are as many workers as cores for prediction; each of
them decodes pictures and runs networks as `backlog.Backlog` decides, with one thread while there is work for
all, and with the threads of those that have none otherwise. On a GPU there is one more for each lane: they wait
for the device most of the time.
"""

from __future__ import annotations

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
from pyserve.inference.work import DEFAULT_PRIORITY, Picture, Pictures, Request

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
        self._changed = threading.Condition()
        self._requests: set[Request] = set()
        self._bytes = 0
        self._idle = 0
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"pyserve-predict-{i}", daemon=True)
            for i in range(threads if on_cpu else threads + policy.lanes)
        ]
        for worker in self._workers:
            worker.start()

    def submit(
        self,
        predictor: Predictor,
        pictures: Pictures,
        *,
        tta: bool = False,
        priority: int = DEFAULT_PRIORITY,
        deadline: float = math.inf,
        field: str = "images.data",
    ) -> Future[Probabilities]:
        """Queue pictures.

        Args:
            predictor: the model.
            pictures: encoded files, or an array that `Predictor.check_tensor` gave; not to be changed any more.
            tta: the mean over several views of each picture.
            priority: 1 (first) to 3 (last).
            deadline: when the answer is worthless, in the clock of `time.monotonic`.
            field: what errors call the list of pictures.

        Returns:
            float32 [N, classes]. Cancelling it takes what has not begun out of the queue. Its error is an
            InvalidArgumentError that names every bad picture, a DeadlineExceededError, an UnavailableError where
            the batcher is closed meanwhile, or an InternalError.

        Raises:
            ResourceExhaustedError: too many requests wait; says when to try again.
            DeadlineExceededError: the answer cannot be there in time.
            UnavailableError: the batcher is closed.
        """
        now = time.monotonic()
        request = Request(
            predictor, pictures, tta=tta, priority=priority, deadline=deadline, arrival=now, field=field
        )
        if not request.count:
            request.answer()
            return request.future
        with self._changed:
            self._admit(request, now)
            self._requests.add(request)
            self._bytes += request.size_bytes
            self._backlog.add(request.split(self.policy.max_batch_size), now)
            self._changed.notify()  # whoever takes the first picture wakes the next worker where there are more
        request.future.add_done_callback(lambda _: self._leave(request))
        return request.future

    def unanswered(self, predictor: Predictor | None = None) -> tuple[int, int]:
        """Requests without an answer yet, of one model or of all, and their pictures without one."""
        with self._changed:
            waiting = [r for r in self._requests if predictor is None or r.predictor is predictor]
            return len(waiting), sum(request.unanswered for request in waiting)

    def close(self) -> None:
        """Refuse new requests and fail those that wait; return when the workers have ended."""
        with self._changed:
            self._closed = True
            waiting = [request for request in self._requests if request.settle()]
            self._changed.notify_all()
        for request in waiting:
            request.fail(UnavailableError("the server stopped before the pictures were predicted"))
        for worker in self._workers:
            worker.join()

    # Admission

    def _admit(self, request: Request, now: float) -> None:
        if self._closed:
            raise UnavailableError("the server is stopping")
        if len(self._requests) >= self._max_requests:
            raise self._exhausted(f"too many requests wait: the limit is {self._max_requests}", request)
        if self._requests and self._bytes + request.size_bytes > self._max_bytes:
            raise self._exhausted(f"too many pictures wait: the limit is {self._max_bytes} bytes", request)
        if math.isinf(request.deadline):
            return
        left_s, ahead_s = request.deadline - now, self._ahead_s(request)
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
            if other.priority <= request.priority
        )
        return seconds / self.policy.lanes

    def _exhausted(self, message: str, request: Request) -> ResourceExhaustedError:
        # When half of the queue is done there is room for those who come back.
        delay_s = min(max(self._ahead_s(request) / 2, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        limits = {"limit": str(self._max_requests), "limit_bytes": str(self._max_bytes)}
        return ResourceExhaustedError(message, retry_delay_s=delay_s, metadata=limits)

    def _leave(self, request: Request) -> None:
        """A request is over, in whatever way."""
        with self._changed:
            self._requests.discard(request)
            self._bytes -= request.size_bytes
        if request.future.cancelled() or request.future.exception() is not None:
            request.predictor.statistics.failed(time.monotonic() - request.arrival)
        request.release()

    # Workers

    def _work(self) -> None:
        threads = 0
        while (choice := self._next()) is not None:
            if isinstance(choice, Decode):
                self._decode(choice.picture)
                continue
            wanted = max((self._idle + 1) // choice.parts, 1) if self._on_cpu else 1
            if wanted != threads:
                torch.set_num_threads(wanted)  # of what this thread calls; others keep theirs
                threads = wanted
            self._run(choice)

    def _next(self) -> Decode | Batch | None:
        """What this worker is to do; None where the batcher is closed."""
        while True:
            with self._changed:
                if self._closed:
                    return None
                now = time.monotonic()
                choice = self._backlog.choose(now, self._idle)
                late = [request for request in self._backlog.late if request.settle()]
                self._backlog.late.clear()
                if not isinstance(choice, Wait):
                    if self._idle and self._backlog.has_more:
                        self._changed.notify()
                elif not late:
                    self._idle += 1
                    self._changed.wait(None if math.isinf(choice.until) else max(choice.until - now, 0))
                    self._idle -= 1
                    continue
            for request in late:
                request.fail(DeadlineExceededError("the call's deadline passed before the model had answered"))
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
        with self._changed:
            if fault:
                self._backlog.undecodable(picture)
            else:
                self._backlog.decoded(picture, end)
            failed = request.picture_decoded(picture.index, fault) and request.settle()
        if failed:
            request.fail(request.fault())

    def _run(self, batch: Batch) -> None:
        request = batch.pictures[0].request
        predictor = request.predictor
        begin = time.monotonic()
        try:
            rows = torch.from_numpy(np.stack([picture.row for picture in batch.pictures]))
            answers = predictor.probabilities(rows, tta=request.tta)
        except Exception as error:
            self._fail(batch, error)
            return
        end = time.monotonic()
        with self._changed:
            self._backlog.batch_done(batch)
            done = [
                picture
                for picture, row in zip(batch.pictures, answers, strict=True)
                if picture.request.picture_answered(picture.index, row) and picture.request.settle()
            ]
        answered = [picture for picture in done if picture.request.answer()]
        predictor.statistics.batch_done(len(batch.pictures), batch.reason.value, end - begin)
        predictor.statistics.answered(
            [(end - p.request.arrival, begin - p.request.arrival - p.decode_s) for p in answered]
        )

    def _fail(self, batch: Batch, error: Exception) -> None:
        """The network failed: every request of the batch does, and no other."""
        name = batch.pictures[0].request.predictor.name
        log.error("%s failed on a batch of %d", name, len(batch.pictures), exc_info=error)
        with self._changed:
            self._backlog.batch_done(batch)
            failed = [picture.request for picture in batch.pictures if picture.request.settle()]
        for request in failed:
            request.fail(_as_ours(error))


def _as_ours(error: Exception) -> PyserveError:
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        message = "memory ran out in the network: send fewer pictures at once"
        return ResourceExhaustedError(message, retry_delay_s=1.0)
    return InternalError("the model failed on these pictures; the server's log tells more")
