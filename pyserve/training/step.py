"""One optimiser step and one validation: the same for training and for the range test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from pyserve.errors import InvalidArgumentError
from pyserve.training.seeding import seed_step

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches(Protocol):
    """What a learner needs of its data: a pure function of (epoch, batch)."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on, on the device: ([N, 3, S, S] float, [N] int64)."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave, still on the device: reading `loss` or `correct` waits for it."""

    loss: torch.Tensor  # mean over the step's pictures, nats, float32
    correct: torch.Tensor  # pictures whose top label is right
    images: int


@dataclass(frozen=True)
class TrainStep:
    """How a step is done: precision, loss, accumulation, clipping; and the seed of what is random in it."""

    precision: str = "float32"  # or "bfloat16": autocast
    label_smoothing: float = 0.0
    gradient_accumulation: int = 1
    gradient_clip_norm: float = 0.0
    seed: int = 0

    def run(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], step: int
    ) -> StepResult:
        """Forward and backward over up to `gradient_accumulation` batches, then one optimiser step.

        The gradient is that of the mean loss over all their pictures, also where the last batch is short. The
        global generators are seeded from (seed, step, batch), so that a resumed step draws the same dropout.
        """
        optimizer.zero_grad(set_to_none=True)
        losses, corrects, images = [], [], 0
        accumulate = self.gradient_accumulation > 1
        for part, (x, y) in enumerate(batches):
            seed_step(self.seed, step, part)
            logits = self._logits(model, x)
            loss = functional.cross_entropy(
                logits.float(), y, label_smoothing=self.label_smoothing, reduction="sum" if accumulate else "mean"
            )
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            corrects.append((logits.detach().argmax(1) == y).sum())
            images += len(y)
        if not images:
            raise InvalidArgumentError(f"training step {step}: got no batch, expected at least one")
        self._update(optimizer, images if accumulate else 1)
        total = torch.stack(losses).sum()
        return StepResult(total / images if accumulate else total, torch.stack(corrects).sum(), images)

    def _logits(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits: torch.Tensor = model(x)
        return logits

    def _update(self, optimizer: torch.optim.Optimizer, divisor: int) -> None:
        learning = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if divisor > 1:
            torch._foreach_div_([p.grad for p in learning], float(divisor))
        if self.gradient_clip_norm > 0:
            nn.utils.clip_grad_norm_(learning, self.gradient_clip_norm, foreach=True)
        optimizer.step()

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], before_batch: Callable[[], None]
    ) -> dict[str, float]:
        """Accuracy (0…1) and loss (nats, without label smoothing) over all pictures, in evaluation mode.

        `before_batch` is called before each batch and may raise to end it. Waits for the device once, at the end.
        """
        was_training = {module: module.training for module in model.modules()}
        model.eval()
        sums: list[torch.Tensor] = []
        images = 0
        try:
            for x, y in batches:
                before_batch()
                logits = self._logits(model, x).float()
                loss = functional.cross_entropy(logits, y, reduction="sum")
                sums.append(torch.stack([loss.double(), (logits.argmax(1) == y).sum().double()]))
                images += len(y)
        finally:
            for module, training in was_training.items():
                module.training = training
        if not images:
            raise InvalidArgumentError("the validation part has no pictures, expected at least one")
        loss_sum, correct = torch.stack(sums).sum(0).tolist()
        return {"loss": loss_sum / images, "accuracy": correct / images}
