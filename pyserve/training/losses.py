"""Reading the losses of steps: on a GPU in blocks, so that the host runs ahead of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from pyserve.training.callbacks import Callbacks, StepInfo
from pyserve.training.config import LearnerState

_GPU_STEPS_PER_READ = 10


class LossReader:
    """Keeps the losses of steps on the device until they are read, then tells of the steps.

    Args:
        state: its watch and its sums over the epoch take the losses in.
        callbacks: who hears about steps and about a rising loss.
        suggested_lr: what a learning-rate finder said, for the warning.
        device: where the losses are.
        diverged: makes the error of a loss that is not finite, of what became so, step and learning rate.
    """

    def __init__(
        self,
        state: LearnerState,
        callbacks: Callbacks,
        suggested_lr: float | None,
        device: torch.device,
        diverged: Callable[[str, int, float], Exception],
    ) -> None:
        self._state, self._callbacks, self._suggested_lr = state, callbacks, suggested_lr
        self._diverged = diverged
        self._at_once = 1 if device.type == "cpu" else _GPU_STEPS_PER_READ
        self._pending: list[tuple[StepInfo, torch.Tensor]] = []

    def add(self, info: StepInfo, loss: torch.Tensor) -> None:
        """Take in a step whose losses in `info` are still unknown; read them if there are enough."""
        self._pending.append((info, loss))
        if len(self._pending) >= self._at_once:
            self.read()

    def read(self) -> None:
        """Read what is pending in one wait for the device; raises what `diverged` makes."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        losses = torch.stack([loss for _, loss in pending]).tolist()
        for (info, _), loss in zip(pending, losses, strict=True):
            rate, watch = info.learning_rates[-1], self._state.watch
            if not math.isfinite(loss):
                raise self._diverged(f"training loss became {loss}", info.step, rate)
            warning = watch.add(info.step, loss, rate, self._suggested_lr)
            self._state.epoch_loss_sum += loss * info.images
            self._state.epoch_images += info.images
            self._callbacks.on_step(dataclasses.replace(info, loss=loss, smoothed_loss=watch.smoothed))
            if warning:
                self._callbacks.on_warning("loss_rising", warning)
