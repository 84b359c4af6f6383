"""The learning-rate range test (Smith, arXiv 1506.01186): train while the rate rises, and watch the loss.

It runs on a copy of the network with an optimiser of its own, and puts every random generator back, so that
nothing of it is left in the training that follows, whatever happens in between.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pyserve.errors import InvalidArgumentError
from pyserve.training.callbacks import CurvePoint
from pyserve.training.config import LearnerConfig
from pyserve.training.loss_watch import debiased
from pyserve.training.network import Network
from pyserve.training.optim import set_rates
from pyserve.training.seeding import derive_seed, deterministic, kept_random_state
from pyserve.training.step import Batch, Batches, closing

_BETA = 0.98
_BEST_AFTER = 10  # steps before the best loss counts: the first ones swing


@dataclass(frozen=True)
class RangeTest:
    """Which rates are tried and when it ends; the fields mean what they mean in `FindLearningRateSpec`."""

    start_lr: float = 1e-7
    end_lr: float = 10.0
    steps: int = 100
    mode: Literal["exponential", "doubling", "linear"] = "exponential"
    divergence_factor: float = 4.0

    def rates(self) -> list[float]:
        """The head's learning rate of each step, ascending.

        Exponential and linear: `steps` rates from `start_lr` to `end_lr`. Doubling: each twice the one before,
        up to `end_lr`; `steps` plays no part.
        """
        if self.mode == "doubling":
            count = math.floor(math.log2(self.end_lr / self.start_lr) + 1e-9) + 1
            return [self.start_lr * 2**i for i in range(count)]
        last = max(self.steps - 1, 1)
        if self.mode == "linear":
            return [self.start_lr + (self.end_lr - self.start_lr) * i / last for i in range(self.steps)]
        return [self.start_lr * (self.end_lr / self.start_lr) ** (i / last) for i in range(self.steps)]


@dataclass
class Curve:
    """What a range test saw, point by point; the smoothed losses are the ones that rules read."""

    planned: int
    points: list[CurvePoint] = field(default_factory=list)
    diverged: bool = False

    @property
    def lrs(self) -> list[float]:
        """The learning rates, ascending."""
        return [point.learning_rate for point in self.points]

    @property
    def losses(self) -> list[float]:
        """The mini-batches' losses, nats."""
        return [point.loss for point in self.points]

    @property
    def smoothed(self) -> list[float]:
        """The debiased moving averages of the losses, nats."""
        return [point.smoothed_loss for point in self.points]


def range_test(
    network: Network,
    config: LearnerConfig,
    batches: Batches,
    options: RangeTest,
    *,
    run: int = 0,
    frozen: bool = False,
    on_point: Callable[[CurvePoint], None] = lambda point: None,
    before_step: Callable[[], None] = lambda: None,
) -> Curve:
    """Train a copy of `network` over `options.rates()` and give the curve.

    Precision, accumulation, clipping, optimiser, layer groups' ratios of rates and BatchNorm freeze are those of
    `config`; the data begin again where they end. The test ends early where the smoothed loss exceeds
    `divergence_factor` times its best after the first ten steps, or is not finite.

    Args:
        network: left bit for bit as it is: weights, buffers, gradients, modes.
        config: how the training will learn.
        batches: the training's, read from their first epoch on.
        options: which rates.
        run: which repeat; told in the points, and part of the seed.
        frozen: only the head learns.
        on_point: called after each step.
        before_step: called before each step; may raise to end it.
    """
    if not len(batches):
        raise InvalidArgumentError("the training part has less than 2 pictures, expected 2 or more")
    rates = options.rates()
    curve = Curve(planned=len(rates))
    step = dataclasses.replace(config.step, seed=derive_seed(config.step.seed, run))
    device = next(network.model.parameters()).device
    with kept_random_state(), deterministic(device), closing(endless(batches)) as stream:
        twin = dataclasses.replace(network, model=copy.deepcopy(network.model))
        twin.freeze_body(frozen)
        twin.train_mode(freeze_batch_norm=config.freeze_batch_norm)
        optimizer = config.make_optimizer(twin)
        average, best = 0.0, math.inf
        for index, rate in enumerate(rates):
            before_step()
            set_rates(optimizer, rate, None)
            group = itertools.islice(stream, step.gradient_accumulation)
            result = step.run(twin.model, optimizer, group, index)
            loss = float(result.loss)
            if not math.isfinite(loss):
                curve.diverged = True
                break
            average = _BETA * average + (1 - _BETA) * loss
            smoothed = debiased(average, _BETA, index + 1)
            point = CurvePoint(rate, loss, smoothed, int(result.correct) / result.images, run)
            curve.points.append(point)
            on_point(point)
            if smoothed > options.divergence_factor * best:
                curve.diverged = True
                break
            if index >= _BEST_AFTER:
                best = min(best, smoothed)
    return curve


def endless(batches: Batches) -> Iterator[Batch]:
    """Epoch after epoch without end."""
    for epoch in itertools.count():
        with closing(batches.epoch(epoch)) as stream:
            yield from stream
