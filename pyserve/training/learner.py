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
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.training.callbacks import (
    STOPPED_STATUS,
    Callbacks,
    EpochInfo,
    PhaseInfo,
    Status,
    StepInfo,
    Stopped,
    raise_if_stopped,
)
from pyserve.training.checkpoint import Checkpoint, CheckpointStore, select
from pyserve.training.config import LearnerConfig, LearnerState
from pyserve.training.ema import WeightAverage
from pyserve.training.evaluation import evaluate
from pyserve.training.graphed import GraphedBackward
from pyserve.training.loss_watch import not_finite
from pyserve.training.losses import LossReader
from pyserve.training.network import Network
from pyserve.training.optim import export_state, import_state, learning_rates, set_rates
from pyserve.training.phases import Phase, phase_of
from pyserve.training.saver import Saver
from pyserve.training.seeding import deterministic, kept_random_state
from pyserve.training.step import Batch, Batches, closing

_OVERRUN = 1.1  # of the time budget, before it is told


@dataclass(frozen=True)
class Stage:
    """What a phase runs on: the network or its head alone, and batches of what that takes, on its device."""

    network: Network
    train: Batches
    valid: Batches


@dataclass(frozen=True)
class _Running:
    """The phase that runs."""

    index: int
    begin: int  # its first epoch, from 0
    phase: Phase
    rate: float
    stage: Stage
    optimizer: torch.optim.Optimizer
    graphed: GraphedBackward | None


class Learner:
    """Trains one network.

    Args:
        network: on its device, in the form that trains.
        config: how it learns.
        phases: what learns when; at least one.
        stage_of: what the phase of an index runs on; called when it begins. All have equally many batches.
        callbacks: who hears about it and may stop it.
        find_rate: finds the learning rate of a phase that has none, told that of the phase before (0: none); the
            same for the same weights.
        store: where checkpoints go; None keeps none.
        keep: told the epoch after each, when the network has the weights that were measured; None: nobody is.
        identity: names the training (spec and data); a checkpoint with another one is refused.
    """

    def __init__(
        self,
        network: Network,
        config: LearnerConfig,
        phases: Sequence[Phase],
        stage_of: Callable[[int], Stage],
        *,
        callbacks: Callbacks,
        find_rate: Callable[[int, Stage, float], float] | None = None,
        store: CheckpointStore | None = None,
        keep: Callable[[int], None] | None = None,
        identity: str = "",
    ) -> None:
        self.network, self.config, self.phases = network, config, tuple(phases)
        self.callbacks = callbacks
        self.saver = Saver(store, identity, config.checkpoint_interval_s, callbacks)
        self._stage_of, self._find_rate, self._keep = stage_of, find_rate, keep
        self.device = next(network.model.parameters()).device
        self.total_epochs = sum(phase.epochs for phase in phases)
        self.best_weights: dict[str, torch.Tensor] = {}
        self.average = WeightAverage(network.model, config.ema_decay) if config.ema_decay else None
        self._begin_at(LearnerState())
        self._running: _Running | None = None
        self._restored: Checkpoint | None = None
        self._clock, self._overrun_told = time.monotonic(), False

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or early stopping ended them."""
        return self.state.stopped_early or self.state.epoch >= self.total_epochs

    @property
    def last_rate(self) -> float:
        """Highest learning rate of the phase whose epoch was the last; 0 where none was found yet."""
        index, _ = phase_of(self.phases, max(self.state.epoch - 1, 0))
        return self._known_rate(index) or 0.0

    def fit(self) -> Status:
        """Train to the end, or until `should_stop` says so; then the model has the best weights of all epochs.

        Raises:
            FailedPreconditionError: loss or weights are no longer finite; the last good checkpoint is kept.
            InvalidArgumentError: there is nothing to learn from.
        """
        self._clock = time.monotonic()
        self.saver.wait_anew()
        with deterministic(self.device), kept_random_state():
            try:
                while not self.finished:
                    self._run_epoch(self._enter_phase())
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
        checkpoint = self.saver.load()
        if checkpoint is None:
            return False
        self._begin_at(LearnerState.from_json(checkpoint.state["learner"]))
        self.network.model.load_state_dict(select(checkpoint.tensors, "model."))
        self.best_weights = select(checkpoint.tensors, "best.")
        if self.average:
            self.average.load(select(checkpoint.tensors, "average."), checkpoint.state["average_updates"])
        self.saver.kept_step, self._restored = self.state.step, checkpoint
        return True

    def _begin_at(self, state: LearnerState) -> None:
        self.state = state
        self._losses = LossReader(state, self.callbacks, self.config.suggested_lr, self.device, self._diverged)

    # ------------------------------------------------------------ phases

    def _enter_phase(self) -> _Running:
        """The phase of the running epoch; where one begins, with a rate and an optimiser of its own."""
        index, begin = phase_of(self.phases, self.state.epoch)
        if self._running is not None and self._running.index == index:
            return self._running
        phase = self.phases[index]
        self.network.freeze_body(phase.frozen)
        stage = self._stage_of(index)
        if not len(stage.train):
            raise InvalidArgumentError("the training part has less than 2 pictures, expected 2 or more")
        rate = self._rate_of(index, stage)
        optimizer = self.config.make_optimizer(stage.network)
        graphed = None
        if self.device.type == "cuda":
            graphed = GraphedBackward(self.config.step.forward_backward, self.callbacks.on_warning)
        running = _Running(index, begin, phase, rate, stage, optimizer, graphed)
        if self.state.epoch == begin and self.state.step_in_epoch == 0:
            if index > 0:
                self.state.watch.restart()
            self._tell_phase(running)
        if self._restored is not None and self._restored.state["phase"] == index:
            import_state(optimizer, select(self._restored.tensors, "optimizer."))
        self._restored, self._running = None, running
        return running

    def _known_rate(self, index: int) -> float | None:
        return self.phases[index].learning_rate or self.state.found_rates.get(str(index))

    def _rate_of(self, index: int, stage: Stage) -> float:
        known = self._known_rate(index)
        if known is not None:
            return known
        if self._find_rate is None:
            raise InvalidArgumentError(f"phase {index + 1} has no learning rate, and nothing finds one")
        before = self._known_rate(index - 1) if index else None
        found = self._find_rate(index, stage, before or 0.0)
        self.state.found_rates[str(index)] = found
        return found

    def _tell_phase(self, running: _Running) -> None:
        phase = running.phase
        info = PhaseInfo(
            name=phase.name,
            phase=running.index + 1,
            total_phases=len(self.phases),
            first_epoch=running.begin + 1,
            epochs=phase.epochs,
            learning_rate=running.rate,
            schedule=phase.schedule,
            frozen=phase.frozen,
        )
        self.callbacks.on_phase(info)

    # ------------------------------------------------------------ epochs

    def _run_epoch(self, running: _Running) -> None:
        state, stage = self.state, running.stage
        accumulation = self.config.step.gradient_accumulation
        steps = -(-len(stage.train) // accumulation)
        stage.network.train_mode(freeze_batch_norm=self.config.freeze_batch_norm)
        if state.step_in_epoch < steps:
            with closing(stage.train.epoch(state.epoch, state.step_in_epoch * accumulation)) as batches:
                while state.step_in_epoch < steps:
                    self._ask_to_stop()
                    step_in_phase = (state.epoch - running.begin) * steps + state.step_in_epoch
                    point = running.phase.at(step_in_phase, steps)
                    set_rates(running.optimizer, running.rate * point.lr_factor, point.momentum)
                    self._step(running, itertools.islice(batches, accumulation), steps)
        self._losses.read()
        with self.average.in_place() if self.average else nullcontext():
            self._end_epoch(running, self._validate(stage))
        self._save()

    def _validate(self, stage: Stage) -> dict[str, float]:
        with closing(stage.valid.epoch(0)) as batches:
            views = (((x,), y) for x, y in batches)
            return evaluate(stage.network.model, views, self._ask_to_stop, self.config.step.precision)

    def _ask_to_stop(self) -> None:
        raise_if_stopped(self.callbacks)

    def _step(self, running: _Running, batches: Iterator[Batch], steps_per_epoch: int) -> None:
        state = self.state
        model = running.stage.network.model
        result = self.config.step.run(model, running.optimizer, batches, state.step, running.graphed)
        if self.average:
            self.average.update()
        state.step += 1
        state.step_in_epoch += 1
        info = StepInfo(
            step=state.step,
            total_steps=self.total_epochs * steps_per_epoch,
            epoch=state.epoch + 1,
            total_epochs=self.total_epochs,
            loss=math.nan,
            smoothed_loss=math.nan,
            learning_rates=learning_rates(running.optimizer),
            images=result.images,
            phase=running.phase.name,
        )
        self._losses.add(info, result.loss)
        if self.saver.is_due:
            self._save()

    def _end_epoch(self, running: _Running, valid: dict[str, float]) -> None:
        """Count the epoch and keep its weights where they are the best; the model has those that were measured."""
        state = self.state
        if not math.isfinite(valid["loss"]):
            raise self._diverged(f"validation loss became {valid['loss']}", state.step, running.rate)
        self._tick()
        metrics = {"train_loss": state.epoch_loss_sum / state.epoch_images, **valid}
        best = state.improves_on_best(valid, self.config.monitor)
        if best:
            self.best_weights = self.network.weights()
        elapsed_s = state.epoch_elapsed_s
        state.end_epoch(metrics, best=best)
        info = EpochInfo(state.epoch, self.total_epochs, metrics, best, elapsed_s, running.phase.name)
        state.stopped_early = self._patience_is_over(running)
        self.callbacks.on_epoch(info)
        if self._keep:
            self._keep(state.epoch)
        self._tell_overrun(elapsed_s)

    def _patience_is_over(self, running: _Running) -> bool:
        """Only in the last phase, and counted from its beginning at the earliest."""
        state = self.state
        if not self.config.patience or running.index < len(self.phases) - 1 or state.epoch >= self.total_epochs:
            return False
        waited = state.epoch - max(state.best_epoch, running.begin)
        return waited >= self.config.patience and running.phase.may_stop_after(state.epoch - running.begin)

    def _tell_overrun(self, epoch_s: float) -> None:
        budget, left = self.config.time_budget_s, self.total_epochs - self.state.epoch
        if budget is None or self.state.stopped_early or self._overrun_told or not left:
            return
        expected = self.state.elapsed_s + left * epoch_s
        if expected > _OVERRUN * budget:
            self._overrun_told = True
            self.callbacks.on_warning(
                "over_budget",
                f"{left} more epochs of {epoch_s:.0f} s will take the training to {expected / 60:.1f} minutes, "
                f"planned were {budget / 60:.1f}: the machine is slower than when it was measured",
            )

    # ------------------------------------------------------------ checkpoints

    def _tick(self) -> None:
        """Count the time since the last call."""
        now = time.monotonic()
        self.state.elapsed_s += now - self._clock
        self.state.epoch_elapsed_s += now - self._clock
        self._clock = now

    def _diverged(self, what: str, step: int, learning_rate: float) -> FailedPreconditionError:
        sentence = not_finite(what, step, learning_rate, self.config.suggested_lr, self.saver.kept_step)
        return FailedPreconditionError(sentence)

    def _save(self) -> None:
        """Write a checkpoint of finite numbers, or say that there are none to write."""
        self._losses.read()
        running = self._running
        if not self.network.is_finite():
            raise self._diverged(
                "weights are no longer finite", self.state.step, running.rate if running else math.nan
            )
        self._tick()
        tensors = {f"model.{k}": v for k, v in self.network.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best_weights.items()}
        if running:
            tensors |= {f"optimizer.{k}": v for k, v in export_state(running.optimizer).items()}
        if self.average:
            tensors |= {f"average.{k}": v for k, v in self.average.state().items()}
        state = {
            "phase": running.index if running else -1,
            "average_updates": self.average.updates if self.average else 0,
            "learner": dataclasses.asdict(self.state),
        }
        self.saver.save(Checkpoint(tensors, state), self.state.step, self.state.epoch)

    def _save_what_is_good(self) -> None:
        """The checkpoint of a stopped training; where its numbers are no longer finite the last good one stays."""
        if self._restored is not None:
            return  # nothing was done since it was read
        try:
            self._save()
        except FailedPreconditionError as error:
            self.callbacks.on_warning("diverged", error.message)
