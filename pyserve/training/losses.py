"""Reading the losses of steps: on a GPU in blocks, so that the host runs ahead of it."""

from __future__ import annotations

import dataclasses
import math

import torch

from pyserve.training.callbacks import Callbacks, StepInfo
from pyserve.training.config import LearnerState

_GPU_STEPS_PER_READ = 10


class NotFinite(Exception):  # noqa: N818  the learner makes the error that leaves the package
    """A step's loss is not a finite number."""

    def __init__(self, loss: float, info: StepInfo) -> None:
        super().__init__(loss)
        self.loss, self.info = loss, info


class LossReader:
    """Keeps the losses of steps on the device until they are read, then tells of the steps.

    Args:
        state: its watch and its sums over the epoch take the losses in.
        callbacks: who hears about steps and about a rising loss.
        suggested_lr: what a learning-rate finder said, for the warning.
        device: where the losses are.
    """

    def __init__(
        self, state: LearnerState, callbacks: Callbacks, suggested_lr: float | None, device: torch.device
    ) -> None:
        self._state, self._callbacks, self._suggested_lr = state, callbacks, suggested_lr
        self._at_once = 1 if device.type == "cpu" else _GPU_STEPS_PER_READ
        self._pending: list[tuple[StepInfo, torch.Tensor]] = []

    def add(self, info: StepInfo, loss: torch.Tensor) -> None:
        """Take in a step whose losses in `info` are still unknown; read them if there are enough."""
        self._pending.append((info, loss))
        if len(self._pending) >= self._at_once:
            self.read()

    def read(self) -> None:
        """Read what is pending in one wait for the device.

        Raises:
            NotFinite: a loss is not finite.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        losses = torch.stack([loss for _, loss in pending]).tolist()
        for (info, _), loss in zip(pending, losses, strict=True):
            if not math.isfinite(loss):
                raise NotFinite(loss, info)
            watch = self._state.watch
            warning = watch.add(info.step, loss, info.learning_rates[-1], self._suggested_lr)
            self._state.epoch_loss_sum += loss * info.images
            self._state.epoch_images += info.images
            self._callbacks.on_step(dataclasses.replace(info, loss=loss, smoothed_loss=watch.smoothed))
            if warning:
                self._callbacks.on_warning("loss_rising", warning)
