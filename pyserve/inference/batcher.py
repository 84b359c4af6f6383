"""Workers that decode pictures and run networks, in batches made of whatever requests wait.

One batcher serves all models of a device. Its workers are as many as there are cores for prediction; on a CPU each of
them decodes pictures and runs networks as `backlog.Backlog` decides, with one thread while there is work for all, and
with the threads of those that have none otherwise. On a GPU one more worker feeds the network while the others decode.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
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
# Of the measured speed: a request is refused for its deadline only where it would be late at twice the speed too.
_OPTIMISM = 0.5


class Batcher:
    """Predicts for many callers at once; all methods may be called from any thread.

    Args:
        policy: how batches are made.
        threads: cores for decoding, and on a CPU for the network.
        max_requests: requests that may wait or be worked on; one more is refused.
        max_bytes: size of their pictures together, likewise.
    """

    def __init__(self, policy: Policy, *, threads: int, max_requests: int, max_bytes: int) -> None:
        self._policy = policy
        self._threads = threads
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._backlog = Backlog(policy)
        self._changed = threading.Condition()
        self._requests: set[Request] = set()
        self._bytes = 0
        self._idle = 0
        self._closed = False
        on_gpu = policy.lanes < threads
        self._workers = [
            threading.Thread(target=self._work, name=f"pyserve-predict-{i}", daemon=True)
            for i in range(threads + policy.lanes if on_gpu else threads)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def policy(self) -> Policy:
        """How batches are made."""
        return self._policy

    def submit(
        self,
        predictor: Predictor,
        pictures: Pictures,
        *,
        tta: bool = False,
        priority: int = DEFAULT_PRIORITY,
        deadline: float = math.inf,
    ) -> Future[Probabilities]:
        """Queue pictures.

        Args:
            predictor: the model.
            pictures: encoded files, or an array that `Predictor.check_tensor` gave; not to be changed any more.
            tta: the mean over several views of each picture.
            priority: 1 (first) to 3 (last).
            deadline: when the answer is worthless, in the clock of `time.monotonic`.

        Returns:
            float32 [N, classes]. Cancelling it takes what has not begun out of the queue. Its error is an
            InvalidArgumentError whose fields are "[3]" for picture 3, a DeadlineExceededError, an UnavailableError
            where the batcher is closed, or an InternalError.

        Raises:
            ResourceExhaustedError: too many requests wait; says when to try again.
            DeadlineExceededError: the answer cannot be there in time.
            UnavailableError: the batcher is closed.
        """
        now = time.monotonic()
        request = Request(
            predictor, pictures, tta=tta, priority=priority, deadline=deadline, arrival=now
        )
        if not request.count:
            request.answer()
            return request.future
        with self._changed:
            self._admit(request, now)
            self._requests.add(request)
            self._bytes += request.size_bytes
            self._backlog.add(request.split(self._policy.max_batch_size), now)
            self._changed.notify(min(request.count, self._idle))
        request.future.add_done_callback(lambda _: self._leave(request))
        return request.future

    def waiting(self, predictor: Predictor) -> int:
        """Requests for a model that have no answer yet."""
        with self._changed:
            return sum(request.predictor is predictor for request in self._requests)

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
        ahead_s = self._ahead_s(request)
        if len(self._requests) >= self._max_requests:
            raise self._exhausted(f"too many requests wait: the limit is {self._max_requests}", ahead_s)
        if self._bytes + request.size_bytes > self._max_bytes and self._requests:
            raise self._exhausted(f"too many pictures wait: the limit is {self._max_bytes} bytes", ahead_s)
        left_s = request.deadline - now
        if left_s <= 0 or _OPTIMISM * ahead_s > left_s:
            raise DeadlineExceededError(
                f"the answer cannot be there in time: {max(left_s, 0) * 1e3:.0f} ms are left, and what waits before "
                f"it takes about {ahead_s * 1e3:.0f} ms"
            )

    def _ahead_s(self, request: Request) -> float:
        """About how long all that is served before a new request takes."""
        return sum(
            other.left * other.predictor.statistics.picture_s / self._policy.lanes
            for other in self._requests
            if other.priority <= request.priority
        )

    def _exhausted(self, message: str, ahead_s: float) -> ResourceExhaustedError:
        # Half the queue is room enough for those who come back.
        delay_s = min(max(ahead_s / 2, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        return ResourceExhaustedError(
            message, retry_delay_s=delay_s, metadata={"limit": str(self._max_requests)}
        )

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
            wanted = self._threads_for(choice)
            if wanted != threads:  # counts for this thread alone
                torch.set_num_threads(wanted)
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
                if isinstance(choice, Wait) and not late:
                    self._idle += 1
                    self._changed.wait(None if math.isinf(choice.until) else max(choice.until - now, 0))
                    self._idle -= 1
                    continue
            for request in late:
                request.fail(DeadlineExceededError("the call's deadline passed before the model had answered"))
            if not isinstance(choice, Wait):
                return choice

    def _threads_for(self, batch: Batch) -> int:
        """Threads for a pass: on a CPU those of workers that have nothing to do are shared out."""
        if self._policy.lanes < self._threads:
            return 1
        return max((self._idle + 1) // batch.parts, 1)

    def _decode(self, picture: Picture) -> None:
        request, fault = picture.request, ""
        begin = time.monotonic()
        try:
            picture.row = request.predictor.decode(request.encoded(picture.index))
        except DataError as error:
            fault = error.message
        except IndexError:  # the request is over, and its pictures are gone
            fault = "nobody wants it"
        except Exception:
            log.exception("decoding a picture failed")
            fault = "cannot be decoded: an unexpected error"
        picture.decode_s = time.monotonic() - begin
        request.predictor.statistics.decoded(picture.decode_s)
        with self._changed:
            if picture.row is None:
                self._backlog.undecodable(picture)
            else:
                self._backlog.decoded(picture, time.monotonic())
            failed = request.picture_decoded(picture.index, fault) and request.settle()
            if self._idle:
                self._changed.notify()
        if failed:
            request.fail(request.fault())

    def _run(self, batch: Batch) -> None:
        predictor, tta = batch.pictures[0].request.predictor, batch.pictures[0].request.tta
        begin = time.monotonic()
        try:
            rows = torch.from_numpy(np.stack([picture.row for picture in batch.pictures if picture.row is not None]))
            answers = predictor.probabilities(rows, tta=tta)
        except Exception as error:
            self._fail_batch(batch, error)
            return
        end = time.monotonic()
        predictor.statistics.batch_done(len(batch.pictures), batch.reason.value, end - begin)
        with self._changed:
            self._backlog.batch_done(batch)
            done = [
                picture
                for picture, row in zip(batch.pictures, answers, strict=True)
                if picture.request.picture_answered(picture.index, row) and picture.request.settle()
            ]
            if self._idle:
                self._changed.notify()
        answered = [
            (end - picture.request.arrival, begin - picture.request.arrival - picture.decode_s)
            for picture in done
            if picture.request.answer()
        ]
        predictor.statistics.answered(answered)

    def _fail_batch(self, batch: Batch, error: Exception) -> None:
        """The network failed: every request of the batch does, and no other."""
        log.error("%s failed on a batch of %d", batch.pictures[0].request.predictor.name, len(batch.pictures), exc_info=error)
        with self._changed:
            self._backlog.batch_done(batch)
            failed = {p.request for p in batch.pictures if p.request.settle()}
            self._changed.notify_all()
        for request in failed:
            request.fail(_as_ours(error))


def _as_ours(error: Exception) -> PyserveError:
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        return ResourceExhaustedError("memory ran out in the network: send fewer pictures at once", retry_delay_s=1.0)
    return InternalError("the model failed on this batch; the server's log tells more")
