"""Approximations: least squares against PyTorch's own solver, stairs that are stairs, depth that saves width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyserve.errors import CancelledError, InvalidArgumentError
from pyserve.insight.approximation import (
    TARGETS,
    Model,
    _Network,
    _shapes,
    _Steps,
    least_squares,
    stairs,
    width_against_depth,
)
from pyserve.spec import APPROXIMATION_TARGETS


def test_least_squares_of_a_straight_problem() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(30, generator=generator, dtype=torch.float64)
    expected = torch.linalg.lstsq(a, y[:, None]).solution[:, 0]
    starts = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 10
    found, errors = least_squares(lambda p: (p @ a.T, a.expand(len(p), -1, -1)), starts, y, 30)
    assert (found - expected).abs().max() < 1e-6
    assert errors == pytest.approx(float((a @ expected - y).square().mean().sqrt()))


def test_least_squares_of_a_curved_problem_never_gets_worse() -> None:
    """Rosenbrock's valley, whose least is at (1, 1)."""

    def output(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.stack([10 * (p[:, 1] - p[:, 0] ** 2), 1 - p[:, 0]], dim=1)
        one, zero = torch.ones(len(p), dtype=torch.float64), torch.zeros(len(p), dtype=torch.float64)
        rows = [torch.stack(row, dim=1) for row in ([-20 * p[:, 0], 10 * one], [-one, zero])]
        return values, torch.stack(rows, dim=1)

    starts = torch.tensor([[-1.2, 1.0], [3.0, -2.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    errors = [least_squares(output, starts, zero, n)[1] for n in (0, 5, 60)]
    assert ((errors[1] <= errors[0]) & (errors[2] <= errors[1])).all()
    assert least_squares(output, starts, zero, 60)[0] == pytest.approx(np.ones((2, 2)), abs=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_derivatives_are_those_of_autograd(depth: int) -> None:
    x = torch.linspace(0, 1, 9, dtype=torch.float64)
    shapes = _shapes(depth, 4)
    models: list[Model] = [_Network(x, tuple(shapes)), _Steps(x, 3, 7.0)]
    for model, size in zip(models, (sum(a * b for a, b in shapes), 7), strict=True):
        p = torch.randn(2, size, generator=torch.Generator().manual_seed(depth), dtype=torch.float64)
        for i in range(2):
            expected = torch.autograd.functional.jacobian(lambda v, model=model: model(v[None])[0][0], p[i])
            assert (model(p)[1][i] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", TARGETS)
def test_more_steps_come_closer(name: str) -> None:
    found = stairs(name, [1, 4, 16])
    errors = [s.error for s in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.6 * errors[0]


def test_a_staircase_is_one() -> None:
    """Flat but for its steps, each as high as its unit says."""
    (found,) = stairs("waves", [5])
    assert len(found.places) == len(found.heights) == 5
    assert (np.diff(found.places) >= 0).all()
    far = np.abs(found.x[:, None] - found.places).min(axis=1) > 0.03
    expected = found.base + (found.heights * (found.x[:, None] > found.places)).sum(axis=1)
    assert found.output[far] == pytest.approx(expected[far], abs=0.01)
    assert found.error == pytest.approx(np.sqrt(np.mean((found.output - found.target) ** 2)))


def test_one_step_for_one_jump() -> None:
    """The best single step for a target that jumps once up and then falls: at the jump."""
    (found,) = stairs("jump", [1])
    assert found.places[0] == pytest.approx(0.3, abs=0.02)
    assert found.heights[0] > 0.3


def test_deeper_networks_need_less_width() -> None:
    found = width_against_depth("sine", 0.02, (1, 2))
    one, two = found.narrowest(1), found.narrowest(2)
    assert one is not None
    assert two is not None
    assert two.width < one.width
    assert one.parameters == 3 * one.width + 1
    assert two.parameters == two.width**2 + 4 * two.width + 1
    for depth in (1, 2):
        of_depth = [f for f in found.fits if f.depth == depth]
        assert [f.width for f in of_depth] == sorted({f.width for f in of_depth})
        assert all(f.error > 0.02 for f in of_depth[:-1])
    assert found.narrowest(3) is None


def test_the_same_question_has_the_same_answer() -> None:
    first, second = (width_against_depth("sine", 0.1, (1,)) for _ in range(2))
    assert first == second
    assert np.array_equal(stairs("sine", [3])[0].output, stairs("sine", [3])[0].output)


def test_the_names_are_those_of_the_spec() -> None:
    assert tuple(TARGETS) == APPROXIMATION_TARGETS


def test_bad_questions() -> None:
    with pytest.raises(InvalidArgumentError, match="target: got 'odd', expected one of waves, sine, saw"):
        stairs("odd")
    with pytest.raises(InvalidArgumentError, match="widths: got 0, expected 1 to 200"):
        stairs("sine", [3, 0])
    with pytest.raises(InvalidArgumentError, match="widths: got 'none'"):
        stairs("sine", [])
    with pytest.raises(InvalidArgumentError, match=r"tolerance: got 0, expected 0\.0001 to 1"):
        width_against_depth("sine", 0)
    with pytest.raises(InvalidArgumentError, match="depths: got 5, expected 1 to 4"):
        width_against_depth("sine", 0.1, (1, 5))
    with pytest.raises(CancelledError, match="stopped after 0 of them"):
        stairs("sine", [3], lambda: True)
    with pytest.raises(CancelledError, match="stopped after 0 of them"):
        width_against_depth("sine", 0.1, (1,), lambda: True)
