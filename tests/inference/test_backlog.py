"""The rule of batching, without threads: who is decoded, what is closed, why, and in which order."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserve.inference.backlog import Backlog, Batch, Decode, Policy, Reason, Wait
from pyserve.inference.statistics import ModelStatistics
from pyserve.inference.work import Picture, Request, Terms

CPU = Policy(max_batch_size=4, lanes=2, max_delay_s=0.002)
GPU = Policy(max_batch_size=4, lanes=1, max_delay_s=0.002)


class Model:
    """What a request asks of its model."""

    labels = ("a", "b")

    def __init__(self, picture_s: float = 0.0) -> None:
        self.statistics = ModelStatistics()
        if picture_s:
            self.statistics.batch_done(1, "empty", picture_s)
        self.bundle: Any = type("Bundle", (), {"preprocessing": type("Preprocessing", (), {"presize": 16})()})()


MODEL = Model()


def request(count: int = 1, *, arrival: float = 0.0, model: Model = MODEL, **terms: Any) -> Request:
    return Request(model, [b"x"] * count, Future(), Terms(**terms), arrival)


def add(backlog: Backlog, request: Request, now: float = 0.0, batch_size: int = 4) -> list[Picture]:
    pictures = request.split(batch_size)
    backlog.add(pictures, now)
    return pictures


def decode(backlog: Backlog, now: float = 0.0, idle: int = 0) -> Picture:
    choice = backlog.choose(now, idle)
    assert isinstance(choice, Decode)
    choice.picture.row = np.zeros(1)
    return choice.picture


def decode_all(backlog: Backlog, count: int, now: float = 0.0) -> None:
    for picture in [decode(backlog, now) for _ in range(count)]:
        backlog.decoded(picture, now)


def closed(backlog: Backlog, now: float = 0.0, idle: int = 0) -> Batch:
    choice = backlog.choose(now, idle)
    assert isinstance(choice, Batch), choice
    return choice


def test_a_single_picture_never_waits() -> None:
    for policy in (CPU, GPU):
        backlog = Backlog(policy)
        add(backlog, request())
        backlog.decoded(decode(backlog), 0.0)
        batch = closed(backlog)
        assert (len(batch.pictures), batch.reason, batch.parts) == (1, Reason.EMPTY, 1)
        backlog.batch_done(batch)
        assert backlog.choose(0.0, 0) == Wait()


def test_a_batch_grows_with_the_backlog_and_not_with_a_timer() -> None:
    backlog = Backlog(CPU)
    for i in range(6):
        add(backlog, request(arrival=i))
    for now in range(4):  # decoding takes far longer than any delay, and still nothing is closed
        backlog.decoded(decode(backlog, 100.0 * now), 100.0 * now)
    batch = closed(backlog, 400.0)
    assert (len(batch.pictures), batch.reason) == (4, Reason.FULL)
    decode_all(backlog, 2)
    rest = closed(backlog)
    assert (len(rest.pictures), rest.reason) == (2, Reason.EMPTY)


def test_workers_that_are_free_share_what_there_is() -> None:
    backlog = Backlog(CPU)
    add(backlog, request(3))
    decode_all(backlog, 3)
    first = closed(backlog, idle=1)
    assert (len(first.pictures), first.reason, first.parts) == (2, Reason.SHARED, 2)
    second = closed(backlog)
    assert (len(second.pictures), second.reason) == (1, Reason.EMPTY)
    assert backlog.choose(0.0, 0) == Wait()


def test_no_more_lanes_than_there_are() -> None:
    backlog = Backlog(GPU)
    add(backlog, request(2))
    decode_all(backlog, 2)
    first = closed(backlog, idle=3)
    assert len(first.pictures) == 2
    add(backlog, request())
    backlog.decoded(decode(backlog), 0.0)
    assert backlog.choose(0.0, 0) == Wait()
    backlog.batch_done(first)
    assert len(closed(backlog).pictures) == 1


def test_a_batch_waits_for_a_picture_that_is_being_decoded_but_not_for_long() -> None:
    backlog = Backlog(GPU)
    add(backlog, request(2))
    first = decode(backlog, 1.0)
    decode(backlog, 1.0)  # by another worker, which takes its time
    backlog.decoded(first, 1.0)
    assert backlog.choose(1.001, 0) == Wait(1.002)
    batch = closed(backlog, 1.002)
    assert (len(batch.pictures), batch.reason) == (1, Reason.DELAY)


def test_a_batch_that_waited_takes_the_picture_that_it_waited_for() -> None:
    backlog = Backlog(GPU)
    add(backlog, request(2))
    first, second = decode(backlog), decode(backlog)
    backlog.decoded(first, 0.0)
    assert backlog.choose(0.001, 0) == Wait(0.002)
    backlog.decoded(second, 0.001)
    batch = closed(backlog, 0.001)
    assert (len(batch.pictures), batch.reason) == (2, Reason.EMPTY)


def test_no_wait_where_the_decoder_can_run_the_picture_itself() -> None:
    backlog = Backlog(CPU)
    add(backlog, request(2))
    first = decode(backlog)
    decode(backlog)
    backlog.decoded(first, 0.0)
    assert (len((batch := closed(backlog)).pictures), batch.reason) == (1, Reason.EMPTY)


def test_a_near_deadline_ends_the_wait() -> None:
    backlog = Backlog(GPU)
    add(backlog, request(deadline=1.0011, model=(model := Model(0.0005))))
    add(backlog, request(model=model))
    first = decode(backlog, 1.0)
    decode(backlog, 1.0)
    backlog.decoded(first, 1.0)
    choice = backlog.choose(1.0, 0)
    assert isinstance(choice, Wait)
    assert choice.until == pytest.approx(1.0006)
    assert closed(backlog, 1.0007).reason == Reason.DEADLINE


def test_preferred_sizes_cut_a_backlog() -> None:
    backlog = Backlog(Policy(max_batch_size=8, preferred_sizes=(2, 4)))
    add(backlog, request(7), batch_size=8)
    decode_all(backlog, 7)
    sizes = []
    for _ in range(3):
        batch = closed(backlog)
        sizes.append((len(batch.pictures), batch.reason))
        backlog.batch_done(batch)
    assert sizes == [(4, Reason.PREFERRED), (2, Reason.PREFERRED), (1, Reason.EMPTY)]


def test_pictures_of_two_kinds_never_share_a_batch() -> None:
    backlog = Backlog(CPU)
    other = Model()
    for i, options in enumerate(({}, {"model": other}, {"tta": True}, {})):
        add(backlog, request(arrival=i, **options))
    decode_all(backlog, 4)
    groups = [[p.request.arrival for p in closed(backlog).pictures] for _ in range(2)]
    backlog.batch_done(Batch([], Reason.EMPTY, 1))
    groups.append([p.request.arrival for p in closed(backlog).pictures])
    assert groups == [[0, 3], [1], [2]]


def test_priorities_come_before_arrival() -> None:
    backlog = Backlog(CPU)
    for arrival, priority in enumerate((3, 2, 1)):
        add(backlog, request(arrival=arrival, priority=priority))
    assert [decode(backlog).request.terms.priority for _ in range(3)] == [1, 2, 3]


def test_a_large_request_does_not_hold_up_small_ones_nor_they_it() -> None:
    backlog = Backlog(CPU)
    model = Model(0.25)  # a full batch takes a second
    large = request(8, arrival=10.0, model=model)
    add(backlog, large)
    for arrival in (10.1, 10.9, 11.5):
        add(backlog, request(arrival=arrival, model=model))
    order = [decode(backlog, 11.0).request for _ in range(11)]
    ranks = ["large" if r is large else r.arrival for r in order]
    assert ranks == ["large"] * 4 + [10.1, 10.9] + ["large"] * 4 + [11.5]


def test_what_nobody_wants_costs_nothing() -> None:
    backlog = Backlog(CPU)
    requests = [request(2, arrival=i) for i in range(4)]
    for each in requests:
        add(backlog, each)
    requests[0].future.cancel()
    decode_all(backlog, 4)
    requests[1].future.cancel()
    requests[3].future.cancel()
    assert [p.request.arrival for p in closed(backlog).pictures] == [2, 2]
    assert backlog.choose(0.0, 0) == Wait()


def test_what_cannot_be_in_time_is_told_and_costs_nothing() -> None:
    backlog = Backlog(CPU)
    model = Model(0.1)
    late = request(deadline=5.0, model=model)
    add(backlog, late)
    add(backlog, request(arrival=1.0, deadline=9.0, model=model))
    assert decode(backlog, 4.99).request.arrival == 1.0
    assert backlog.late == [late]


def test_a_request_with_a_bad_picture_is_decoded_to_its_end_but_not_run() -> None:
    backlog = Backlog(CPU)
    mine = request(3)
    add(backlog, mine)
    good, bad = decode(backlog), decode(backlog)
    backlog.decoded(good, 0.0)
    assert not mine.picture_decoded(good.index)
    backlog.undecodable(bad)
    assert not mine.picture_decoded(bad.index, "is no picture")
    last = decode(backlog)
    backlog.decoded(last, 0.0)
    assert mine.picture_decoded(last.index)  # all were looked at: now it fails
    assert backlog.choose(0.0, 0) == Wait()
    assert [v.field for v in mine.fault().fields] == ["images.data[1]"]


def test_decoding_does_not_run_far_ahead_of_the_network() -> None:
    backlog = Backlog(GPU)
    add(backlog, request(100))
    decode_all(backlog, 4)
    running = closed(backlog)
    decode_all(backlog, 16)
    assert backlog.choose(0.0, 0) == Wait()
    backlog.batch_done(running)
    assert len(closed(backlog).pictures) == 4
    decode_all(backlog, 4)


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Policy, list[tuple[str, int]]]:
    """A policy, and what happens: requests come, workers take and finish work, callers leave."""
    policy = Policy(
        max_batch_size=draw(st.integers(1, 5)),
        preferred_sizes=tuple(draw(st.lists(st.integers(1, 5), max_size=2))),
        lanes=draw(st.integers(1, 3)),
    )
    kinds = st.sampled_from(["add", "add", "work", "work", "work", "finish", "leave"])
    return policy, draw(st.lists(st.tuples(kinds, st.integers(0, 30)), max_size=60))


@given(scripts())
def test_every_picture_that_is_wanted_is_run_exactly_once(script: tuple[Policy, list[tuple[str, int]]]) -> None:
    policy, steps = script
    backlog = Backlog(policy)
    models = [Model(), Model()]
    requests: list[Request] = []
    under_way: list[Decode | Batch] = []
    run: list[Picture] = []
    now = 0.0

    def finish(choice: Decode | Batch) -> None:
        if isinstance(choice, Decode):
            choice.picture.row = np.zeros(1)
            backlog.decoded(choice.picture, now)
        else:
            backlog.batch_done(choice)

    def work(idle: int) -> bool:
        choice = backlog.choose(now, idle)
        if isinstance(choice, Wait):
            return False
        if isinstance(choice, Batch):
            assert 1 <= len(choice.pictures) <= policy.max_batch_size
            assert len({p.kind for p in choice.pictures}) == 1
            assert sum(isinstance(c, Batch) for c in under_way) < policy.lanes
            run.extend(choice.pictures)
        under_way.append(choice)
        return True

    for what, number in steps:
        now += 0.001
        if what == "add":
            requests.append(request(1 + number % 7, arrival=now, model=models[number % 2], tta=number > 25))
            add(backlog, requests[-1], now, policy.max_batch_size)
        elif what == "work":
            work(number % 3)
        elif what == "finish" and under_way:
            finish(under_way.pop(number % len(under_way)))
        elif what == "leave" and requests:
            requests[number % len(requests)].future.cancel()
    while under_way or work(0):
        now += 1.0
        finish(under_way.pop(0))
    wanted = {(id(r), i) for r in requests if not r.future.cancelled() for i in range(r.count)}
    assert wanted <= {(id(p.request), p.index) for p in run}
    assert len({(id(p.request), p.index) for p in run}) == len(run)
    assert not backlog.has_more
