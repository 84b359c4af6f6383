"""How a network learns, and where a training stands: what checkpoints keep beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pyserve.training.loss_watch import LossWatch
from pyserve.training.network import Network
from pyserve.training.optim import group_factors, make_optimizer, parameter_groups
from pyserve.training.step import TrainStep


@dataclass(frozen=True)
class LearnerConfig:
    """How a network learns; the fields mean what they mean in `pyserve.v1.TrainSpec`."""

    step: TrainStep = field(default_factory=TrainStep)
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    body_lr_factor: float = 1.0
    freeze_batch_norm: bool = False
    ema_decay: float = 0.0
    patience: int = 0
    monitor: Literal["accuracy", "loss"] = "accuracy"
    suggested_lr: float | None = None  # what a learning-rate finder said, for the warnings
    time_budget_s: float | None = None  # for all epochs; what will not fit is told
    checkpoint_interval_s: float = 60.0

    def make_optimizer(self, network: Network) -> torch.optim.Optimizer:
        """A fresh optimiser over what learns, with the layer groups' ratios of learning rates."""
        factors = group_factors(len(network.layer_groups), self.body_lr_factor)
        groups = parameter_groups(
            network.model, network.layer_groups, factors, self.weight_decay, network.rate_factors
        )
        return make_optimizer(self.optimizer, groups, momentum=self.momentum)


@dataclass
class LearnerState:
    """Where a training stands: all that a checkpoint keeps beside tensors."""

    step: int = 0
    epoch: int = 0  # done
    step_in_epoch: int = 0
    epoch_loss_sum: float = 0.0
    epoch_images: int = 0
    epoch_elapsed_s: float = 0.0
    elapsed_s: float = 0.0
    best_epoch: int = 0  # counted from 1; 0: none yet
    best_metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    found_rates: dict[str, float] = field(default_factory=dict)  # by range tests; phase's index, as text, → rate
    stopped_early: bool = False
    watch: LossWatch = field(default_factory=LossWatch)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LearnerState:
        """From what `dataclasses.asdict` made of it."""
        return cls(**{**values, "watch": LossWatch(**values["watch"])})

    def end_epoch(self, metrics: dict[str, float], *, best: bool) -> None:
        """Count an epoch that is done; `metrics` has those of the validation part and "train_loss"."""
        self.epoch += 1
        if best:
            self.best_epoch = self.epoch
            self.best_metrics = {name: value for name, value in metrics.items() if name != "train_loss"}
        entry = {"epoch": self.epoch, "step": self.step, **metrics, "elapsed_s": self.epoch_elapsed_s}
        self.history.append(entry)
        self.step_in_epoch, self.epoch_images = 0, 0
        self.epoch_loss_sum = self.epoch_elapsed_s = 0.0

    def improves_on_best(self, metrics: dict[str, float], monitor: str) -> bool:
        """Whether an epoch with these validation metrics would be the best so far."""
        if not self.best_epoch:
            return True
        best, value = self.best_metrics[monitor], metrics[monitor]
        return value < best if monitor == "loss" else value > best
