"""The training loop: phases of epochs, validation, best weights, early stopping, checkpoints, spoken warnings.

What a step does depends on (seed, step) and the weights alone; so a training that was stopped anywhere and resumed
ends with bit for bit the weights of an undisturbed one, on the same device with the same number of threads.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.training.callbacks import (
    STOPPED_STATUS,
    Callbacks,
    EpochInfo,
    Status,
    StepInfo,
    Stopped,
    raise_if_stopped,
)
from pyserve.training.checkpoint import Checkpoint, CheckpointStore, select
from pyserve.training.loss_watch import LossWatch, not_finite
from pyserve.training.network import Network
from pyserve.training.optim import (
    export_state,
    group_factors,
    import_state,
    learning_rates,
    make_optimizer,
    parameter_groups,
    set_rates,
)
from pyserve.training.phases import Phase, phase_of
from pyserve.training.seeding import deterministic, kept_random_state
from pyserve.training.step import Batch, Batches, TrainStep

_GPU_STEPS_PER_READ = 10  # losses are read in blocks, so that the host runs ahead of a GPU


@dataclass(frozen=True)
class LearnerConfig:
    """How a network learns; the fields mean what they mean in `pyserve.v1.TrainSpec`."""

    step: TrainStep = field(default_factory=TrainStep)
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    body_lr_factor: float = 1.0
    freeze_batch_norm: bool = False
    patience: int = 0
    monitor: Literal["accuracy", "loss"] = "accuracy"
    suggested_lr: float | None = None  # what a learning-rate finder said, for the warnings
    checkpoint_interval_s: float = 60.0

    def make_optimizer(self, network: Network) -> torch.optim.Optimizer:
        """A fresh optimiser over what learns, with the layer groups' ratios of learning rates."""
        factors = group_factors(len(network.layer_groups), self.body_lr_factor)
        groups = parameter_groups(network.model, network.layer_groups, factors, self.weight_decay)
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
    stopped_early: bool = False
    watch: LossWatch = field(default_factory=LossWatch)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LearnerState:
        """From what `dataclasses.asdict` made of it."""
        return cls(**{**values, "watch": LossWatch(**values["watch"])})


class Learner:
    """Trains one network.

    Args:
        network: on its device, in the form that trains.
        config: how it learns.
        train, valid: batches on that device.
        phases: what learns when; at least one.
        callbacks: who hears about it and may stop it.
        store: where checkpoints go; None keeps none.
        keep: told the epoch after each, when the network has the weights that were measured; None: nobody is.
        identity: names the training (spec and data); a checkpoint with another one is refused.
    """

    def __init__(
        self,
        network: Network,
        config: LearnerConfig,
        train: Batches,
        valid: Batches,
        phases: Sequence[Phase],
        *,
        callbacks: Callbacks,
        store: CheckpointStore | None = None,
        keep: Callable[[int], None] | None = None,
        identity: str = "",
    ) -> None:
        if not len(train):
            raise InvalidArgumentError("the training part has less than 2 pictures, expected 2 or more")
        self.network, self.config, self.train, self.valid = network, config, train, valid
        self.phases, self.callbacks, self.store, self.identity = tuple(phases), callbacks, store, identity
        self._keep = keep
        self.device = next(network.model.parameters()).device
        self.steps_per_epoch = -(-len(train) // config.step.gradient_accumulation)
        self.total_epochs = sum(phase.epochs for phase in phases)
        self.state = LearnerState()
        self.best_weights: dict[str, torch.Tensor] = {}
        self._phase_index = -1
        self._optimizer: torch.optim.Optimizer | None = None
        self._pending: list[tuple[StepInfo, torch.Tensor]] = []
        self._kept_step = 0
        self._saved_at = self._clock = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or early stopping ended them."""
        return self.state.stopped_early or self.state.epoch >= self.total_epochs

    def fit(self) -> Status:
        """Train to the end, or until `should_stop` says so; then the model has the best weights of all epochs.

        Raises:
            FailedPreconditionError: loss or weights are no longer finite; the last good checkpoint is kept.
        """
        self._saved_at = self._clock = time.monotonic()
        with deterministic(self.device), kept_random_state():
            try:
                while not self.finished:
                    self._run_epoch()
            except Stopped as stop:
                self._save_what_is_good()
                return STOPPED_STATUS[stop.kind]
        self.network.model.load_state_dict(self.best_weights)
        return "done"

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint; False where there is none.

        Raises:
            DataLossError: every checkpoint is damaged.
            FailedPreconditionError: the checkpoint is that of another training.
        """
        checkpoint, problem = self.store.load() if self.store else (None, None)
        if checkpoint is None:
            return False
        if checkpoint.state["identity"] != self.identity:
            raise FailedPreconditionError("the checkpoint is of a training with another spec or other data")
        if problem:
            self.callbacks.on_warning("checkpoint_damaged", f"{problem}; going on from the one before")
        if checkpoint.state["threads"] != torch.get_num_threads():
            self.callbacks.on_warning(
                "threads_changed",
                f"resumed with {torch.get_num_threads()} threads, begun with {checkpoint.state['threads']}: "
                "sums are added in another order, so the weights will differ in their last bits",
            )
        self.state = LearnerState.from_json(checkpoint.state["learner"])
        self.network.model.load_state_dict(select(checkpoint.tensors, "model."))
        self.best_weights = select(checkpoint.tensors, "best.")
        self._kept_step = self.state.step
        if not self.finished:
            optimizer = self._enter_phase()
            if checkpoint.state["phase"] == self._phase_index:
                import_state(optimizer, select(checkpoint.tensors, "optimizer."))
            else:  # it was written at the end of the phase before
                self.state.watch.restart()
        return True

    def _enter_phase(self) -> torch.optim.Optimizer:
        """The optimiser of the running epoch; a fresh one where a phase begins, as its layers do."""
        index, _ = phase_of(self.phases, self.state.epoch)
        if index != self._phase_index or self._optimizer is None:
            self.network.freeze_body(self.phases[index].frozen)
            self._optimizer = self.config.make_optimizer(self.network)
            if self._phase_index >= 0:
                self.state.watch.restart()
            self._phase_index = index
        return self._optimizer

    def _run_epoch(self) -> None:
        optimizer = self._enter_phase()
        index, begin = phase_of(self.phases, self.state.epoch)
        phase, state = self.phases[index], self.state
        self.network.train_mode(freeze_batch_norm=self.config.freeze_batch_norm)
        accumulation = self.config.step.gradient_accumulation
        if state.step_in_epoch < self.steps_per_epoch:
            with closing(self.train.epoch(state.epoch, state.step_in_epoch * accumulation)) as batches:
                while state.step_in_epoch < self.steps_per_epoch:
                    self._ask_to_stop()
                    step_in_phase = (state.epoch - begin) * self.steps_per_epoch + state.step_in_epoch
                    point = phase.at(step_in_phase, self.steps_per_epoch)
                    set_rates(optimizer, phase.learning_rate * point.lr_factor, point.momentum)
                    self._step(optimizer, itertools.islice(batches, accumulation))
        self._read_losses()
        with closing(self.valid.epoch(0)) as batches:
            metrics = self.config.step.evaluate(self.network.model, batches, self._ask_to_stop)
        self._end_epoch(phase, begin, metrics)

    def _ask_to_stop(self) -> None:
        raise_if_stopped(self.callbacks)

    def _step(self, optimizer: torch.optim.Optimizer, batches: Iterator[Batch]) -> None:
        state = self.state
        result = self.config.step.run(self.network.model, optimizer, batches, state.step)
        state.step += 1
        state.step_in_epoch += 1
        info = StepInfo(
            step=state.step,
            total_steps=self.total_epochs * self.steps_per_epoch,
            epoch=state.epoch + 1,
            total_epochs=self.total_epochs,
            loss=math.nan,
            smoothed_loss=math.nan,
            learning_rates=learning_rates(optimizer),
            images=result.images,
        )
        self._pending.append((info, result.loss))
        if self.device.type == "cpu" or len(self._pending) >= _GPU_STEPS_PER_READ:
            self._read_losses()
        if self.store and time.monotonic() - self._saved_at >= self.config.checkpoint_interval_s:
            self._save()

    def _read_losses(self) -> None:
        """Read the losses of the steps since the last time, in one wait for the device, and tell of them."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        losses = torch.stack([loss for _, loss in pending]).tolist()
        for (info, _), loss in zip(pending, losses, strict=True):
            rate = info.learning_rates[-1]
            if not math.isfinite(loss):
                raise self._diverged(f"training loss became {loss}", info.step, rate)
            warning = self.state.watch.add(info.step, loss, rate, self.config.suggested_lr)
            self.state.epoch_loss_sum += loss * info.images
            self.state.epoch_images += info.images
            smoothed = self.state.watch.smoothed
            self.callbacks.on_step(dataclasses.replace(info, loss=loss, smoothed_loss=smoothed))
            if warning:
                self.callbacks.on_warning("loss_rising", warning)

    def _diverged(self, what: str, step: int, learning_rate: float) -> FailedPreconditionError:
        sentence = not_finite(what, step, learning_rate, self.config.suggested_lr, self._kept_step)
        return FailedPreconditionError(sentence)

    def _end_epoch(self, phase: Phase, begin: int, valid: dict[str, float]) -> None:
        state = self.state
        rate = phase.learning_rate
        if not math.isfinite(valid["loss"]):
            raise self._diverged(f"validation loss became {valid['loss']}", state.step, rate)
        self._tick()
        metrics = {"train_loss": state.epoch_loss_sum / state.epoch_images, **valid}
        state.epoch += 1
        best = self._improves(valid)
        if best:
            state.best_epoch, state.best_metrics = state.epoch, valid
            self.best_weights = self.network.weights()
        elapsed_s = state.epoch_elapsed_s
        state.history.append({"epoch": state.epoch, "step": state.step, **metrics, "elapsed_s": elapsed_s})
        info = EpochInfo(state.epoch, self.total_epochs, metrics, best, elapsed_s)
        state.stopped_early = self._patience_is_over(phase, begin)
        state.step_in_epoch, state.epoch_images = 0, 0
        state.epoch_loss_sum = state.epoch_elapsed_s = 0.0
        self.callbacks.on_epoch(info)
        if self._keep:
            self._keep(state.epoch)
        if self.store:
            self._save()

    def _improves(self, valid: dict[str, float]) -> bool:
        if not self.state.best_epoch:
            return True
        best = self.state.best_metrics[self.config.monitor]
        value = valid[self.config.monitor]
        return value < best if self.config.monitor == "loss" else value > best

    def _patience_is_over(self, phase: Phase, begin: int) -> bool:
        """Only in the last phase, and counted from its beginning at the earliest."""
        state = self.state
        if not self.config.patience or phase is not self.phases[-1] or state.epoch >= self.total_epochs:
            return False
        waited = state.epoch - max(state.best_epoch, begin)
        return waited >= self.config.patience and phase.may_stop_after(state.epoch - begin)

    def _tick(self) -> None:
        """Count the time since the last call."""
        now = time.monotonic()
        self.state.elapsed_s += now - self._clock
        self.state.epoch_elapsed_s += now - self._clock
        self._clock = now

    def _save(self) -> None:
        """Write a checkpoint of finite numbers, or say that there are none to write."""
        assert self.store is not None  # noqa: S101  callers ask first
        self._read_losses()
        if not self.network.is_finite():
            index, _ = phase_of(self.phases, min(self.state.epoch, self.total_epochs - 1))
            raise self._diverged("weights are no longer finite", self.state.step, self.phases[index].learning_rate)
        self._tick()
        optimizer = export_state(self._optimizer) if self._optimizer else {}
        tensors = {f"model.{k}": v for k, v in self.network.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        tensors |= {f"best.{k}": v for k, v in self.best_weights.items()}
        state = {
            "identity": self.identity,
            "phase": self._phase_index,
            "threads": torch.get_num_threads(),
            "learner": dataclasses.asdict(self.state),
        }
        self.store.save(Checkpoint(tensors, state))
        self._kept_step, self._saved_at = self.state.step, time.monotonic()
        self.callbacks.on_checkpoint(self.state.step, self.state.epoch)

    def _save_what_is_good(self) -> None:
        """The checkpoint of a stopped training; where its numbers are no longer finite the last good one stays."""
        if not self.store:
            return
        try:
            self._save()
        except FailedPreconditionError as error:
            self.callbacks.on_warning("diverged", error.message)


@contextmanager
def closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Close a generator of batches on the way out, so that its reading thread ends with it."""
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
