"""What a caller wants of a model: a request, and its pictures on their way through decoders and network."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyserve.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from pyserve.inference.predictor import Predictor, Probabilities

FIRST_PRIORITY, DEFAULT_PRIORITY, LAST_PRIORITY = 1, 2, 3

# What is asked: encoded files, or an array [N, 3, S, S] that `Predictor.check_tensor` gave.
Pictures = Sequence[bytes] | npt.NDArray[Any]

AnyFuture = Future["Probabilities"] | asyncio.Future["Probabilities"]

_numbers = count()


@dataclass
class Stages:
    """When what was done for a request, in the clock of `time.monotonic`; the batcher adds to it under its lock.

    Attributes:
        arrival: when it came.
        decoded: begin and end, one for each picture.
        passes: through the network: begin, end, and pictures in the batch, those of other requests included.
    """

    arrival: float = dataclasses.field(default_factory=time.monotonic)
    decoded: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    passes: list[tuple[float, float, int]] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Terms:
    """How pictures are to be predicted.

    Attributes:
        tta: test-time augmentation: the mean over several views of each picture.
        priority: FIRST_PRIORITY to LAST_PRIORITY.
        deadline: when the answer is worthless, in the clock of `time.monotonic`.
        field: what errors call the list of pictures.
        stages: is told what was done when; None: nobody asks.
    """

    tta: bool = False
    priority: int = DEFAULT_PRIORITY
    deadline: float = math.inf
    field: str = "images.data"
    stages: Stages | None = None


DEFAULT_TERMS = Terms()


class Picture:
    """One picture of a request.

    Attributes:
        kind: pictures of one kind may share a batch: same model, sizes, element type, and views.
        order: pictures with a smaller one come first; no two have the same.
        row: decoded, [3, side, side]; None before.
        decode_s: seconds that decoding took.
    """

    __slots__ = ("decode_s", "index", "kind", "order", "request", "row")

    def __init__(
        self, request: Request, index: int, kind: Hashable, order: tuple[float, ...], row: Any = None
    ) -> None:
        self.request = request
        self.index = index
        self.kind = kind
        self.order = order
        self.row = row
        self.decode_s = 0.0


class Request:
    """Pictures of one caller for one model. Its counters belong to whoever holds the batcher's lock.

    Args:
        predictor: the model.
        pictures: see `Pictures`, at least one.
        future: gets float32 [N, classes], or an error; of asyncio it belongs to its loop. Cancelled by a caller
            that is gone.
        terms: what else the caller wants.
        arrival: now, in the clock of `time.monotonic`.

    Attributes:
        size_bytes: of the pictures as they came.
        count: N.
        unanswered: pictures that have no probabilities yet.
    """

    def __init__(
        self, predictor: Predictor, pictures: Pictures, future: AnyFuture, terms: Terms, arrival: float
    ) -> None:
        self.predictor = predictor
        self.future = future
        self.terms = terms
        self.arrival = arrival
        self.count = len(pictures)
        self._array = pictures if isinstance(pictures, np.ndarray) else None
        self._encoded: Sequence[bytes] = () if isinstance(pictures, np.ndarray) else pictures
        self.size_bytes = sum(map(len, self._encoded)) if self._array is None else self._array.nbytes
        self._undecoded = len(self._encoded)
        self.unanswered = self.count
        self._faults: dict[int, str] = {}
        self._answer: Probabilities = np.empty((self.count, len(predictor.labels)), np.float32)
        self._error: BaseException | None = None
        self._settled = False

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more: it is there, has failed, or was cancelled."""
        return self._settled or self.future.done()

    @property
    def needs_network(self) -> bool:
        """Whether it is worth the network's time: not over, and no picture of it is known to be bad."""
        return not (self._faults or self.is_over)

    def can_be_in_time(self, now: float) -> bool:
        """Whether a pass that begins now would end before the deadline, at half the time it usually takes."""
        return now + 0.5 * self.predictor.statistics.picture_s <= self.terms.deadline

    def split(self, batch_size: int) -> list[Picture]:
        """Its pictures, in an order that is fair: every `batch_size` of them as if they had come a batch later."""
        array = self._array
        side = self.predictor.bundle.preprocessing.presize
        form = ("uint8", side) if array is None else (array.dtype.name, array.shape[-1])
        kind = (id(self.predictor), *form, self.terms.tta)
        batch_s = batch_size * self.predictor.statistics.picture_s
        number = next(_numbers)
        return [
            Picture(
                self,
                index,
                kind,
                (self.terms.priority, self.arrival + index // batch_size * batch_s, number, index),
                None if array is None else array[index],
            )
            for index in range(self.count)
        ]

    def encoded(self, index: int) -> bytes:
        """One of the files; IndexError where the request is over."""
        return self._encoded[index]

    def picture_decoded(self, index: int, fault: str = "") -> bool:
        """One more of the files was decoded, or found to be none.

        Returns:
            Whether the request fails now: all were looked at, so that the error can name every bad one.
        """
        self._undecoded -= 1
        if fault:
            self._faults[index] = fault
        return bool(self._faults) and not self._undecoded

    def picture_answered(self, index: int, row: npt.NDArray[np.float32]) -> bool:
        """One more picture has its probabilities; whether it was the last."""
        self._answer[index] = row
        self.unanswered -= 1
        return not self.unanswered

    def settle(self, error: BaseException | None = None) -> bool:
        """Decide how it ends, unless that is decided or nobody waits any more; then it is to be resolved.

        Args:
            error: None for the probabilities.
        """
        if self.is_over:
            return False
        self._settled, self._error = True, error
        return True

    @property
    def is_settled(self) -> bool:
        """Whether it is decided how it ends."""
        return self._settled

    def resolve(self) -> None:
        """Give the caller what was decided; on the loop of its future, where that has one."""
        if isinstance(self.future, Future):
            if not self.future.set_running_or_notify_cancel():
                return
        elif self.future.done():  # cancelled a moment ago
            return
        if self._error is None:
            self.future.set_result(self._answer)
        else:
            self.future.set_exception(self._error)

    def fault(self) -> InvalidArgumentError:
        """The error that names every bad picture."""
        violations = tuple(
            FieldViolation(f"{self.terms.field}[{index}]", self._faults[index]) for index in sorted(self._faults)
        )
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        return InvalidArgumentError(message, fields=violations)

    def release(self) -> None:
        """Let go of the pictures; what is left of the request in a queue is small then."""
        self._encoded, self._array = (), None


def resolve(requests: Iterable[Request]) -> None:
    """Give the callers of settled requests what was decided: those of one event loop at once, waking it once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Request]] = {}
    for request in requests:
        if isinstance(request.future, Future):
            request.resolve()
        else:
            by_loop.setdefault(request.future.get_loop(), []).append(request)
    for loop, theirs in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_resolve_here, theirs)


def _resolve_here(requests: list[Request]) -> None:
    for request in requests:
        request.resolve()
