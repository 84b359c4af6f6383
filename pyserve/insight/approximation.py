"""That networks can approximate any function, to be looked at: stairs, and width against depth at equal error.

A hidden layer of steep sigmoids is a staircase: each unit one step, at its own place and of its own height
(Cybenko 1989; drawn like this by Nielsen 2015, "Neural Networks and Deep Learning", chapter 4). Deeper networks
get as close with fewer units per layer.

All networks here are trained, from several random starts at once, by Levenberg and Marquardt's damped least
squares: for a few dozen parameters it converges in as many iterations, so that what is compared is what networks
can do and not what an optimiser did to them in a given time. The same arguments give the same networks.

To add a target: a function decorated with `@target(name)`; calls, command line and tests enumerate `TARGETS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pyserve.errors import CancelledError, InvalidArgumentError

DEFAULT_STAIRS = (2, 5, 15, 50)
DEFAULT_DEPTHS = (1, 2, 3)
DEFAULT_TOLERANCE = 0.01
MAX_STEPS_OF_STAIRS = 200
MAX_DEPTH = 4
WIDTHS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24)
_POINTS = 201
_STARTS = 6
_ITERATIONS = 80
_STEEPNESS = (4.0, 12.0, 40.0, 160.0)  # of a step, in steps per unit of length: soft ones still move
_MOST_PARAMETERS = 250

Target = Callable[[torch.Tensor], torch.Tensor]  # x in 0…1 → y
TARGETS: dict[str, Target] = {}
ShouldStop = Callable[[], bool]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stairs:
    """A network with one hidden layer of `width` steep sigmoids, fitted to a target at points x."""

    width: int
    x: Values  # [points], 0…1
    target: Values
    output: Values
    places: Values  # of the steps, ascending [width]
    heights: Values  # of the steps
    base: float  # left of the first step

    @property
    def error(self) -> float:
        """Root mean square distance from the target."""
        return float(np.sqrt(np.mean((self.output - self.target) ** 2)))


@dataclass(frozen=True)
class Fit:
    """The best network of a depth and a width."""

    depth: int  # hidden layers
    width: int  # units in each
    parameters: int
    error: float  # root mean square


@dataclass(frozen=True)
class WidthAgainstDepth:
    """For each depth the fits of growing width, up to the first within the tolerance."""

    fits: tuple[Fit, ...]
    tolerance: float

    def narrowest(self, depth: int) -> Fit | None:
        """The first of that depth within the tolerance."""
        return next((f for f in self.fits if f.depth == depth and f.error <= self.tolerance), None)


def target(name: str) -> Callable[[Target], Target]:
    """Enter a function into `TARGETS`."""

    def enter(function: Target) -> Target:
        TARGETS[name] = function
        return function

    return enter


@target("waves")
def waves(x: torch.Tensor) -> torch.Tensor:
    """Nielsen's example."""
    return 0.2 + 0.4 * x**2 + 0.3 * x * torch.sin(15 * x) + 0.05 * torch.cos(50 * x)


@target("sine")
def sine(x: torch.Tensor) -> torch.Tensor:
    """Two periods."""
    return 0.5 + 0.4 * torch.sin(4 * math.pi * x)


@target("sawtooth")
def sawtooth(x: torch.Tensor) -> torch.Tensor:
    """Four teeth."""
    return (2 * ((4 * x) % 1) - 1).abs()


@target("jump")
def jump(x: torch.Tensor) -> torch.Tensor:
    """Flat, then higher, then falling."""
    return torch.where(x < 0.3, 0.2, torch.where(x < 0.7, 0.8, 0.8 - 2 * (x - 0.7)))


def stairs(
    name: str = "waves", widths: Sequence[int] = DEFAULT_STAIRS, should_stop: ShouldStop | None = None
) -> list[Stairs]:
    """Fit staircases of several widths to a target.

    Args:
        name: one of `TARGETS`.
        widths: numbers of steps.
        should_stop: asked before each; True ends the work.

    Raises:
        InvalidArgumentError: an unknown target, no width, or one out of range.
        CancelledError: `should_stop` said so.
    """
    function = _target(name)
    if not widths:
        raise InvalidArgumentError.field("widths", "none", "at least one")
    for width in widths:
        if not 1 <= width <= MAX_STEPS_OF_STAIRS:
            raise InvalidArgumentError.field("widths", width, f"1 to {MAX_STEPS_OF_STAIRS}")
    found: list[Stairs] = []
    for width in widths:
        if should_stop is not None and should_stop():
            raise CancelledError(f"the fitting of staircases was stopped after {len(found)} of them")
        found.append(_staircase(function, width))
    return found


def width_against_depth(
    name: str = "waves",
    tolerance: float = DEFAULT_TOLERANCE,
    depths: Sequence[int] = DEFAULT_DEPTHS,
    should_stop: ShouldStop | None = None,
) -> WidthAgainstDepth:
    """How wide networks of each depth must be to come within an error of a target.

    tanh networks of equally wide layers, `WIDTHS` in turn until one is within the tolerance (or they have too many
    parameters); the best of six random starts counts.

    Args:
        name: one of `TARGETS`.
        tolerance: root mean square error to be reached.
        depths: numbers of hidden layers.
        should_stop: asked before each network; True ends the work.

    Raises:
        InvalidArgumentError: an unknown target, a tolerance or depth out of range.
        CancelledError: `should_stop` said so.
    """
    function = _target(name)
    if not 1e-4 <= tolerance <= 1:
        raise InvalidArgumentError.field("tolerance", tolerance, "0.0001 to 1")
    for depth in depths:
        if not 1 <= depth <= MAX_DEPTH:
            raise InvalidArgumentError.field("depths", depth, f"1 to {MAX_DEPTH}")
    fits: list[Fit] = []
    for depth in depths:
        for width in WIDTHS:
            if should_stop is not None and should_stop():
                raise CancelledError(f"the fitting of networks was stopped after {len(fits)} of them")
            shapes = _shapes(depth, width)
            parameters = sum(a * b for a, b in shapes)
            if parameters > _MOST_PARAMETERS:
                break
            error = _best_error(function, shapes)
            fits.append(Fit(depth, width, parameters, error))
            if error <= tolerance:
                break
    return WidthAgainstDepth(tuple(fits), tolerance)


def _target(name: str) -> Target:
    if name not in TARGETS:
        raise InvalidArgumentError.field("target", name, f"one of {', '.join(TARGETS)}")
    return TARGETS[name]


def _points() -> torch.Tensor:
    return torch.linspace(0, 1, _POINTS, dtype=torch.float64)


# ------------------------------------------------------------ stairs


def _staircase(function: Target, width: int) -> Stairs:
    x = _points()
    y = function(x)
    places = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    parameters = torch.cat([places, torch.zeros(width, dtype=torch.float64), y.mean().reshape(1)])[None]
    for steepness in _STEEPNESS:
        model = _Steps(x, width, steepness * width)
        parameters, _ = least_squares(model, parameters, y, _ITERATIONS // 4)
    places, heights = parameters[0, :width], parameters[0, width : 2 * width]
    order = places.argsort()
    return Stairs(
        width=width,
        x=x.numpy(),
        target=y.numpy(),
        output=model(parameters)[0][0].numpy(),
        places=places[order].numpy(),
        heights=heights[order].numpy(),
        base=float(parameters[0, -1]),
    )


@dataclass(frozen=True)
class _Steps:
    """base + Σ height · sigmoid(slope · (x − place)); parameters are the places, the heights and the base."""

    x: torch.Tensor
    width: int
    slope: float

    def __call__(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [B, M] of parameters [B, P], and their derivatives [B, M, P]."""
        places, heights = parameters[:, None, : self.width], parameters[:, None, self.width : -1]
        steps = torch.sigmoid(self.slope * (self.x[:, None] - places))
        values = (steps * heights).sum(2) + parameters[:, -1:]
        by_place = -self.slope * heights * steps * (1 - steps)
        return values, torch.cat([by_place, steps, torch.ones_like(steps[:, :, :1])], dim=2)


# ------------------------------------------------------------ deep networks


def _shapes(depth: int, width: int) -> list[tuple[int, int]]:
    """Weight and bias of each layer, one number in, one out."""
    sizes = [1, *[width] * depth, 1]
    return [shape for i in range(len(sizes) - 1) for shape in ((sizes[i], sizes[i + 1]), (1, sizes[i + 1]))]


def _best_error(function: Target, shapes: list[tuple[int, int]]) -> float:
    x = _points()
    _, errors = least_squares(_Network(x, tuple(shapes)), _starts(shapes), function(x), _ITERATIONS)
    return float(errors.min())


@dataclass(frozen=True)
class _Network:
    """tanh layers and a linear one; parameters are weight and bias of each layer, row by row."""

    x: torch.Tensor
    shapes: tuple[tuple[int, int], ...]

    def __call__(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [B, M] of parameters [B, P], and their derivatives [B, M, P] by backpropagation."""
        parts = torch.split(parameters, [a * b for a, b in self.shapes], dim=1)
        matrices = [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        weights, biases = matrices[::2], matrices[1::2]
        inputs = [(2 * self.x[:, None] - 1).expand(len(parameters), -1, -1)]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(torch.tanh(inputs[-1] @ weight + bias))
        values = (inputs[-1] @ weights[-1] + biases[-1])[:, :, 0]
        derivatives: list[torch.Tensor] = []
        back = torch.ones_like(values)[:, :, None]
        for weight, seen in zip(reversed(weights), reversed(inputs), strict=True):
            derivatives[:0] = [(seen[:, :, :, None] * back[:, :, None, :]).flatten(2), back]
            back = (back @ weight.mT) * (1 - seen.square())
        return values, torch.cat(derivatives, dim=2)


def _starts(shapes: list[tuple[int, int]]) -> torch.Tensor:
    """Random parameters [starts, P]: the more units the first layer has, the more sharply they bend."""
    generator = torch.Generator().manual_seed(0)
    width = shapes[0][1]
    parts = []
    for i in range(0, len(shapes), 2):
        fan_in = shapes[i][0]
        weight = torch.randn(_STARTS, *shapes[i], generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
        if i == 0:
            weight = weight * 3 * width
            places = 2 * torch.rand(_STARTS, *shapes[1], generator=generator, dtype=torch.float64) - 1
            bias = -weight * places
        else:
            bias = 0.1 * torch.randn(_STARTS, *shapes[i + 1], generator=generator, dtype=torch.float64)
        parts += [weight.flatten(1), bias.flatten(1)]
    return torch.cat(parts, dim=1)


# ------------------------------------------------------------ training

# parameters [B, P] → values [B, M], and their derivatives [B, M, P]
Model = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def least_squares(
    model: Model, starts: torch.Tensor, y: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise |model(p) − y|² from several starts at once (Levenberg 1944, Marquardt 1963).

    Args:
        model: values and derivatives of parameters.
        starts: [B, P], float64.
        y: [M].

    Returns:
        Parameters [B, P], and their root mean square errors [B].
    """
    parameters, damping = starts, torch.full((len(starts),), 1e-2, dtype=torch.float64)
    values, jacobian = model(parameters)
    residual = values - y
    loss = residual.square().mean(dim=1)
    for _ in range(iterations):
        jacobian = torch.nan_to_num(jacobian, nan=0.0, posinf=0.0, neginf=0.0)
        curvature, slope = jacobian.mT @ jacobian, (jacobian.mT @ residual[:, :, None])[:, :, 0]
        diagonal = curvature.diagonal(dim1=1, dim2=2)
        scale = diagonal + 1e-2 * diagonal.mean(dim=1, keepdim=True) + 1e-7
        factor, _ = torch.linalg.cholesky_ex(curvature + torch.diag_embed(damping[:, None] * scale))
        step = torch.cholesky_solve(slope[:, :, None], factor)[:, :, 0]
        tried = parameters - torch.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0)
        values, new_jacobian = model(tried)
        new_residual = values - y
        new_loss = new_residual.square().mean(dim=1)
        better = new_loss < loss
        parameters = torch.where(better[:, None], tried, parameters)
        residual = torch.where(better[:, None], new_residual, residual)
        jacobian = torch.where(better[:, None, None], new_jacobian, jacobian)
        loss = torch.where(better, new_loss, loss)
        damping = torch.where(better, damping / 3, damping * 3).clamp(1e-6, 1e6)
    return parameters, loss.sqrt()
