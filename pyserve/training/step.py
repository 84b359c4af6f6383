"""One optimiser step: the same for training and for the range test."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import nn
from torch.nn import functional

from pyserve.errors import InvalidArgumentError
from pyserve.training.evaluation import logits_of
from pyserve.training.graphed import GraphedBackward
from pyserve.training.mixing import Mixing, Targets
from pyserve.training.seeding import derive_seed, seed_step

Batch = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")
_MIXING = 1  # beside (seed, step, batch): what is drawn for mixing is not what dropout draws


class Batches(Protocol):
    """What a learner needs of its data: a pure function of (epoch, batch)."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on, on the device: ([N, 3, S, S] float, [N] int64)."""


@contextmanager
def closing(batches: Iterator[T]) -> Iterator[Iterator[T]]:
    """Close a generator of batches on the way out, so that its reading thread ends with it."""
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True)
class StepResult:
    """What a step gave, still on the device: reading `loss` or `correct` waits for it."""

    loss: torch.Tensor  # mean over the step's pictures, nats, float32
    correct: torch.Tensor  # pictures whose top label is right (mixed ones: their own label)
    images: int


@dataclass(frozen=True)
class TrainStep:
    """How a step is done: precision, loss, mixing, accumulation, clipping; and the seed of what is random in it.

    `class_weights` has one factor on the loss for each class; None weighs all alike.
    """

    precision: str = "float32"  # or "bfloat16": autocast
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    mixing: Mixing = field(default_factory=Mixing)
    gradient_accumulation: int = 1
    gradient_clip_norm: float = 0.0
    seed: int = 0

    def run(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Batch],
        step: int,
        graphed: GraphedBackward | None = None,
    ) -> StepResult:
        """Forward and backward over up to `gradient_accumulation` batches, then one optimiser step.

        The gradient is that of the mean loss over all their pictures, also where the last batch is short. The
        global generators are seeded from (seed, step, batch), so that a resumed step draws the same dropout.
        `graphed` computes gradients in CUDA graphs, where nothing is accumulated.
        """
        optimizer.zero_grad(set_to_none=True)
        losses, corrects, images = [], [], 0
        accumulate = self.gradient_accumulation > 1
        for part, (pictures, y) in enumerate(batches):
            reseed = functools.partial(seed_step, self.seed, step, part)
            reseed()
            x, targets = self._mixed(pictures, y, step, part)
            if graphed is not None and not accumulate:
                loss, correct = graphed.run(model, x, targets, len(y), reseed)
            else:
                loss, correct = self.forward_backward(model, x, targets, 1 if accumulate else len(y))
            losses.append(loss)
            corrects.append(correct)
            images += len(y)
        if not images:
            raise InvalidArgumentError(f"training step {step}: got no batch, expected at least one")
        self._update(optimizer, images if accumulate else 1)
        return StepResult(torch.stack(losses).sum() / images, torch.stack(corrects).sum(), images)

    def forward_backward(
        self, model: nn.Module, x: torch.Tensor, targets: Targets, divisor: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a batch's gradients to those there are: of its loss, summed over pictures, divided by `divisor`.

        Returns:
            The sum of the loss, nats, and how many top labels are right; both on the device.
        """
        logits = logits_of(model, x, self.precision)
        loss = self._loss(logits.float(), targets)
        (loss / divisor).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), (logits.detach().argmax(1) == targets.labels).sum()

    def _mixed(self, x: torch.Tensor, y: torch.Tensor, step: int, part: int) -> tuple[torch.Tensor, Targets]:
        if not self.mixing or x.dim() != 4:  # activations in place of pictures are left as they are
            return x, Targets(y)
        return self.mixing.apply(x, y, derive_seed(self.seed, step, part, _MIXING))

    def _loss(self, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Summed over the pictures."""
        own = self._cross_entropy(logits, targets.labels)
        if targets.partners is None or targets.share is None:
            return own
        return torch.lerp(self._cross_entropy(logits, targets.partners), own, targets.share)

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = None if self.class_weights is None else _tensor(self.class_weights, logits.device)
        return functional.cross_entropy(
            logits, labels, weight=weight, label_smoothing=self.label_smoothing, reduction="sum"
        )

    def _update(self, optimizer: torch.optim.Optimizer, divisor: int) -> None:
        learning = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if divisor > 1:
            torch._foreach_div_([p.grad for p in learning], float(divisor))
        if self.gradient_clip_norm > 0:
            nn.utils.clip_grad_norm_(learning, self.gradient_clip_norm, foreach=True)
        optimizer.step()


def balanced_class_weights(labels: torch.Tensor, classes: int) -> tuple[float, ...]:
    """Weights inverse to the number of a class's pictures; their mean over all pictures is 1.

    N / (classes that occur · pictures of the class); a class without pictures gets 0.

    Args:
        labels: int64 [N], of the training part.
        classes: how many there are.
    """
    counts = torch.bincount(labels.cpu(), minlength=classes).tolist()
    occurring = sum(count > 0 for count in counts)
    return tuple(len(labels) / (occurring * count) if count else 0.0 for count in counts)


@functools.lru_cache(maxsize=16)
def _tensor(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Kept on the device, so that no step waits for a copy."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
