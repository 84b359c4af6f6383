from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from pyserve import spec
from pyserve.training.phases import Phase, phase_of
from pyserve.training.schedules import CYCLIC, SCHEDULES, Span, ends_cycle, one_cycle


def factors(name: str, span: Span) -> list[float]:
    return [SCHEDULES[name](step, span).lr_factor for step in range(span.total_steps)]


def test_the_spec_and_the_registry_name_the_same_schedules() -> None:
    assert set(SCHEDULES) == set(get_args(spec.Schedule))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("span", [Span(1), Span(2), Span(17), Span(40, 10, 2), Span(41, 7)])
def test_every_schedule_is_pure_and_stays_within_its_bounds(name: str, span: Span) -> None:
    first = factors(name, span)
    assert first == factors(name, span)
    assert all(0 <= factor <= 1 for factor in first)
    assert max(first) > 0


def test_one_cycle_agrees_with_torch() -> None:
    total = 50
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total,
        pct_start=0.25,
        div_factor=25,
        final_div_factor=1e5 / 25,
        base_momentum=0.85,
        max_momentum=0.95,
    )
    for step in range(total):
        # torch's rising phase ends one step early, at pct_start · total − 1
        ours = one_cycle(step, Span(total), pct_start=(0.25 * total - 1) / (total - 1))
        group = optimizer.param_groups[0]
        assert ours.lr_factor == pytest.approx(group["lr"], rel=1e-9)
        assert ours.momentum == pytest.approx(group["momentum"], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            peer.step()


def test_one_cycle_has_the_defaults_of_the_design() -> None:
    span = Span(401)
    points = [SCHEDULES["one_cycle"](step, span) for step in range(401)]
    assert points[0] == pytest.approx((1 / 25, 0.95))
    assert points[100] == pytest.approx((1.0, 0.85))
    assert points[-1] == pytest.approx((1e-5, 0.95))
    # half-way up and half-way down lie in the middle between the ends, as on a cosine
    assert points[50].lr_factor == pytest.approx((1 + 1 / 25) / 2)
    assert points[250].lr_factor == pytest.approx((1 + 1e-5) / 2)


def test_slanted_triangular_is_two_straight_lines() -> None:
    steps = range(101)
    points = [SCHEDULES["slanted_triangular"](step, Span(101)) for step in steps]
    expected = np.interp(steps, [0, 23, 100], [0.2, 1.0, 0.07])
    assert [point.lr_factor for point in points] == pytest.approx(list(expected))
    assert {point.momentum for point in points} == {None}


def test_sgdr_agrees_with_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5, T_mult=2)
    for step, ours in enumerate(factors("sgdr", Span(35, 5, 2))):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        peer.step()


@pytest.mark.parametrize("mode", ["triangular", "triangular2"])
def test_triangular_agrees_with_torch(mode: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.25, max_lr=1.0, step_size_up=6, mode=mode, cycle_momentum=False
    )
    for step, ours in enumerate(factors(mode, Span(40, 12))):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        peer.step()


def test_exp_range_is_triangular_with_both_bounds_decaying() -> None:
    total, cycle = 60, 20
    for step, ours in enumerate(factors("exp_range", Span(total, cycle))):
        x = abs(step / (cycle / 2) - 2 * math.floor(1 + step / cycle) + 1)
        height = max(0.0, 1 - x)
        assert ours == pytest.approx((0.25 + 0.75 * height) * math.exp(math.log(0.08) * step / total))


def test_cosine_agrees_with_torch_and_constant_stays() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    for ours in factors("cosine", Span(30)):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        peer.step()
    assert factors("constant", Span(30)) == [1.0] * 30


def test_cycles_end_where_they_end() -> None:
    ends = [step for step in range(36) if ends_cycle("sgdr", step, Span(35, 5, 2))]
    assert ends == [5, 15, 35]
    assert [s for s in range(13) if ends_cycle("triangular", s, Span(12, 4))] == [4, 8, 12]
    for name in SCHEDULES:
        assert ends_cycle(name, 12, Span(12))
        assert not any(ends_cycle(name, step, Span(12)) for step in range(12))


def test_a_phase_knows_its_cycles() -> None:
    phase = Phase(7, 0.1, "sgdr", cycle_epochs=1, cycle_mult=2)
    assert [e for e in range(1, 8) if phase.may_stop_after(e)] == [1, 3, 7]
    assert phase.ends_with_cycle
    assert not Phase(6, 0.1, "sgdr", cycle_epochs=1, cycle_mult=2).ends_with_cycle
    assert not Phase(5, 0.1, "triangular", cycle_epochs=2).ends_with_cycle
    assert Phase(4, 0.1, "triangular", cycle_epochs=2).ends_with_cycle
    for name in set(SCHEDULES) - set(CYCLIC):
        assert all(Phase(5, 0.1, name).may_stop_after(e) for e in range(1, 6))
        assert Phase(5, 0.1, name).ends_with_cycle
    assert Phase(2, 0.1, "sgdr", cycle_epochs=1).at(10, 10).lr_factor == 1.0  # the second cycle begins


def test_phase_of_finds_the_running_phase() -> None:
    phases = (Phase(1, 0.1), Phase(3, 0.1))
    assert [phase_of(phases, epoch) for epoch in range(4)] == [(0, 0), (1, 1), (1, 1), (1, 1)]
    with pytest.raises(IndexError, match="epoch 4 of 4"):
        phase_of(phases, 4)
