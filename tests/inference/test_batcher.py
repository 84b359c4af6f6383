"""The batcher: every caller gets its own answer, whatever happens to the others."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pyserve.errors import (
    DataError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from pyserve.inference.backlog import Policy
from pyserve.inference.batcher import Batcher
from pyserve.inference.statistics import ModelStatistics
from pyserve.inference.work import Terms

CLASSES = 4
BAD = b"bad"


class EchoModel:
    """Answers with the number that a picture stands for, so that a mixed-up answer shows.

    `gate` holds up the network where it is clear; `batches` notes what went through it.
    """

    name = "models/echo/versions/1"
    labels = tuple("abcd")

    def __init__(self) -> None:
        self.statistics = ModelStatistics()
        self.bundle: Any = type("Bundle", (), {"preprocessing": type("Preprocessing", (), {"presize": 2})()})()
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.decoded: list[int] = []
        self.error: Exception | None = None
        self.started = threading.Semaphore(0)

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        if data.startswith(BAD):
            raise DataError("is no picture")
        number = int(data)
        self.decoded.append(number)
        return np.frombuffer(number.to_bytes(12, "little"), np.uint8).reshape(3, 2, 2)

    def probabilities(self, batch: torch.Tensor, *, tta: bool = False) -> npt.NDArray[np.float32]:
        numbers = [int.from_bytes(row.numpy().tobytes(), "little") for row in batch]
        self.batches.append(numbers)
        self.started.release()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        return np.array([expected(number, tta) for number in numbers], np.float32)


def expected(number: int, tta: bool = False) -> list[float]:
    return [number, number + 0.25, -number if tta else 0, 1]


def data(number: int) -> bytes:
    return str(number).encode()


@contextmanager
def batcher(**options: Any) -> Iterator[Batcher]:
    policy = Policy(**({"max_batch_size": 4, "lanes": 2} | options.pop("policy", {})))
    values: dict[str, Any] = {"threads": 2, "max_requests": 10_000, "max_bytes": 1_000_000} | options
    made = Batcher(policy, **values)
    try:
        yield made
    finally:
        made.close()


def rows(future: Future[Any]) -> list[list[float]]:
    return future.result(20).tolist()  # type: ignore[no-any-return]


def test_thousands_of_tagged_requests_get_their_own_answers() -> None:
    rng = random.Random(0)
    model = EchoModel()
    numbers = iter(range(1, 1_000_000))
    asked: list[tuple[list[int], bool, Future[Any]]] = []
    with batcher() as made:

        def caller(seed: int) -> None:
            mine = random.Random(seed)
            for _ in range(300):
                tags = [next(numbers) for _ in range(mine.choice([1, 1, 1, 2, 5, 11]))]
                tta = mine.random() < 0.2
                terms = Terms(tta=tta, priority=mine.choice([1, 2, 3]))
                future = made.submit(model, [data(tag) for tag in tags], terms)
                if mine.random() < 0.1:
                    future.cancel()
                asked.append((tags, tta, future))
                if mine.random() < 0.05:
                    time.sleep(0.002)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(caller, [rng.random() for _ in range(10)]))
        answered = 0
        for tags, tta, future in asked:
            if not future.cancelled():
                assert rows(future) == [expected(tag, tta) for tag in tags]
                answered += 1
        assert made.unanswered() == (0, 0)
    assert answered > 2000
    sizes = {len(batch) for batch in model.batches}
    assert len(sizes) > 1
    assert max(sizes) == 4
    figures = model.statistics.snapshot()
    assert figures.success.count == answered
    assert figures.failure.count == len(asked) - answered
    assert figures.pictures == sum(map(len, model.batches))
    assert sum(total.count for total in figures.closed.values()) == len(model.batches)


def test_arrays_need_no_decoding_and_never_mix_with_files() -> None:
    model = EchoModel()
    array = np.stack([np.frombuffer(i.to_bytes(12, "little"), np.uint8).reshape(3, 2, 2) for i in range(6)])
    with batcher() as made:
        answers = made.submit(model, array)
        floats = made.submit(model, np.zeros((2, 3, 2, 2), np.float32))
        assert rows(answers) == [expected(i) for i in range(6)]
        assert rows(floats) == [expected(0)] * 2
    assert model.decoded == []
    assert sorted(map(len, model.batches)) == sorted([*map(len, model.batches)])
    assert all(batch == [0, 0] or 0 not in batch[1:] for batch in model.batches)


def test_no_picture_is_answered_at_once() -> None:
    with batcher() as made:
        assert made.submit(EchoModel(), []).result(1).shape == (0, CLASSES)


def test_a_bad_picture_fails_its_request_alone_and_every_one_is_named() -> None:
    model = EchoModel()
    with batcher(policy={"lanes": 1, "max_batch_size": 8}) as made:
        model.gate.clear()
        first = made.submit(model, [data(1)])
        assert model.started.acquire(timeout=10)
        good = [made.submit(model, [data(10 + i)]) for i in range(7)]
        mixed = made.submit(model, [data(20), BAD, data(21), BAD], Terms(field="inputs[0]"))
        alone = made.submit(model, [BAD])
        with pytest.raises(InvalidArgumentError) as info:
            mixed.result(10)
        assert [v.field for v in info.value.fields] == ["inputs[0][1]", "inputs[0][3]"]
        assert str(info.value) == "inputs[0][1]: is no picture; inputs[0][3]: is no picture"
        with pytest.raises(InvalidArgumentError):
            alone.result(10)
        model.gate.set()
        assert rows(first) == [expected(1)]
        assert [rows(future) for future in good] == [[expected(10 + i)] for i in range(7)]
    assert not {20, 21} & {number for batch in model.batches for number in batch}


def test_a_network_that_fails_fails_its_batch_and_no_other() -> None:
    model, broken = EchoModel(), EchoModel()
    broken.error = RuntimeError("secret /srv/path")
    with batcher() as made:
        failing = made.submit(broken, [data(1), data(2)])
        fine = made.submit(model, [data(3)])
        with pytest.raises(InternalError) as info:
            failing.result(10)
        assert "secret" not in str(info.value)
        assert rows(fine) == [expected(3)]
        broken.error = None
        assert rows(made.submit(broken, [data(4)])) == [expected(4)]


def test_what_is_cancelled_costs_no_compute() -> None:
    model = EchoModel()
    with batcher(policy={"lanes": 1}, threads=1) as made:
        model.gate.clear()
        first = made.submit(model, [data(1)])
        assert model.started.acquire(timeout=10)
        gone = [made.submit(model, [data(100 + i)]) for i in range(20)]
        stays = made.submit(model, [data(2)])
        assert made.unanswered() == (22, 22)
        assert all(future.cancel() for future in gone)
        assert made.unanswered() == (2, 2)
        model.gate.set()
        assert rows(first) == [expected(1)]
        assert rows(stays) == [expected(2)]
        with pytest.raises(CancelledError):
            gone[0].result(1)
    assert model.decoded == [1, 2]


def test_expired_deadlines_leave_the_queue_as_it_was() -> None:
    model = EchoModel()
    with batcher(policy={"lanes": 1}, threads=1) as made:
        for _ in range(3):
            model.gate.clear()
            first = made.submit(model, [data(1)])
            assert model.started.acquire(timeout=10)
            deadline = time.monotonic() + 0.2
            late = [made.submit(model, [data(9)], Terms(deadline=deadline)) for _ in range(32)]
            time.sleep(0.21)
            model.gate.set()
            for future in late:
                with pytest.raises(DeadlineExceededError):
                    future.result(10)
            model.statistics = ModelStatistics()  # not to be told at once that the next ones will be late
            assert rows(first) == [expected(1)]
            assert made.unanswered() == (0, 0)
            assert rows(made.submit(model, [data(5)])) == [expected(5)]
            model.started = threading.Semaphore(0)
    assert 9 not in model.decoded


def test_a_deadline_that_cannot_be_met_is_told_at_once() -> None:
    model = EchoModel()
    model.statistics.batch_done(1, "empty", 10.0)  # ten seconds a picture
    with batcher(policy={"lanes": 1}, threads=1) as made:
        with pytest.raises(DeadlineExceededError, match="0 ms are left"):
            made.submit(model, [data(1)], Terms(deadline=time.monotonic() - 1))
        model.gate.clear()
        first = made.submit(model, [data(1)])
        assert model.started.acquire(timeout=10)
        with pytest.raises(DeadlineExceededError, match="what waits before it takes about 10000 ms"):
            made.submit(model, [data(2)], Terms(deadline=time.monotonic() + 2))
        model.gate.set()
        assert rows(first) == [expected(1)]


def test_a_full_queue_says_when_to_come_back() -> None:
    model = EchoModel()
    with batcher(policy={"lanes": 1}, threads=1, max_requests=3, max_bytes=8) as made:
        model.gate.clear()
        accepted = [made.submit(model, [data(i)]) for i in range(3)]
        with pytest.raises(ResourceExhaustedError, match="the limit is 3") as info:
            made.submit(model, [data(4)])
        assert info.value.retry_delay_s is not None
        assert 0 < info.value.retry_delay_s <= 10
        assert info.value.metadata["limit"] == "3"
        accepted[2].cancel()
        with pytest.raises(ResourceExhaustedError, match="the limit is 8 bytes"):
            made.submit(model, [data(1234567)])
        accepted[2] = made.submit(model, [data(2)])
        model.gate.set()
        assert [rows(future) for future in accepted] == [[expected(i)] for i in range(3)]
        # what is larger than the limit goes alone
        assert rows(made.submit(model, [b"000000001234"])) == [expected(1234)]


def test_priorities() -> None:
    model = EchoModel()
    with batcher(policy={"lanes": 1, "max_batch_size": 1}, threads=1) as made:
        model.gate.clear()
        made.submit(model, [data(1)])
        assert model.started.acquire(timeout=10)
        futures = [made.submit(model, [data(p * 10)], Terms(priority=p)) for p in (3, 2, 1, 2)]
        model.gate.set()
        for future in futures:
            future.result(10)
    assert model.batches == [[1], [10], [20], [20], [30]]


def test_closing_answers_everybody() -> None:
    model = EchoModel()
    made = Batcher(Policy(2, lanes=1), threads=1, max_requests=100, max_bytes=1000)
    model.gate.clear()
    futures = [made.submit(model, [data(i)]) for i in range(9)]
    assert model.started.acquire(timeout=10)
    closing = threading.Thread(target=made.close)
    closing.start()
    with pytest.raises(UnavailableError):
        futures[-1].result(10)
    model.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert all(future.done() for future in futures)
    with pytest.raises(UnavailableError):
        made.submit(model, [data(1)])


def test_passes_use_the_threads_of_workers_that_have_nothing_to_do() -> None:
    seen: list[int] = []

    class Counting(EchoModel):
        def probabilities(self, batch: torch.Tensor, *, tta: bool = False) -> npt.NDArray[np.float32]:
            seen.append(torch.get_num_threads())
            return super().probabilities(batch, tta=tta)

    model = Counting()
    before = torch.get_num_threads()
    with batcher(policy={"lanes": 3}, threads=3) as made:
        while len(made._idle) < 3:
            time.sleep(0.001)
        model.gate.clear()
        futures = []
        for number in range(3):  # each while the ones before are in the network
            futures.append(made.submit(model, [data(number)]))
            assert model.started.acquire(timeout=10)
        assert seen == [3, 2, 1]
        model.gate.set()
        assert [rows(future) for future in futures] == [[expected(i)] for i in range(3)]
    assert torch.get_num_threads() == before


def test_the_worker_that_worked_last_is_woken_first() -> None:
    names: list[str] = []

    class Noting(EchoModel):
        def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
            names.append(threading.current_thread().name)
            return super().decode(data)

    model = Noting()
    with batcher(policy={"lanes": 4}, threads=4) as made:
        for number in range(20):
            while len(made._idle) < 4:
                time.sleep(0.001)
            rows(made.submit(model, [data(number)]))
    assert len(set(names)) == 1


async def test_an_event_loop_gets_its_answers_too() -> None:
    model = EchoModel()
    with batcher() as made:
        answers = await asyncio.gather(*(made.predict(model, [data(i), data(i + 1)]) for i in range(200)))
        assert [a.tolist() for a in answers] == [[expected(i), expected(i + 1)] for i in range(200)]
        with pytest.raises(InvalidArgumentError):
            await made.predict(model, [BAD])
        model.gate.clear()
        waiting = [asyncio.create_task(made.predict(model, [data(7)])) for _ in range(50)]
        await asyncio.sleep(0.05)
        for task in waiting[::2]:
            task.cancel()
        await asyncio.sleep(0.05)
        assert made.unanswered()[0] == 25
        model.gate.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(o, asyncio.CancelledError) for o in outcomes] == [i % 2 == 0 for i in range(50)]
        assert made.unanswered() == (0, 0)
    figures = model.statistics.snapshot()
    assert (figures.success.count, figures.failure.count) == (225, 26)


async def test_a_caller_that_leaves_at_the_last_moment_is_counted_once() -> None:
    model = EchoModel()
    with batcher() as made:
        for number in range(300):
            task = asyncio.create_task(made.predict(model, [data(number)]))
            await asyncio.sleep(random.random() * 0.001)
            task.cancel()
            await asyncio.wait([task])
        while made.unanswered()[0]:  # noqa: ASYNC110  # the batcher knows no event loops
            await asyncio.sleep(0.01)
        figures = model.statistics.snapshot()
    assert figures.success.count + figures.failure.count == 300
