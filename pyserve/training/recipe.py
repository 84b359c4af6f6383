"""A training from its spec: data, network, phases, learner, and the plain model that comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyserve import models
from pyserve.errors import FailedPreconditionError
from pyserve.models.snapshots import EPOCHS as SNAPSHOT_EPOCHS
from pyserve.models.snapshots import SnapshotFacts, keep_snapshot
from pyserve.spec import default_rule
from pyserve.training.callbacks import STOPPED_STATUS, Callbacks, Status, Stopped, raise_if_stopped
from pyserve.training.checkpoint import CheckpointStore
from pyserve.training.evaluation import evaluate
from pyserve.training.learner import Learner, Stage
from pyserve.training.lr_finder import recommend, suggest_all, useful
from pyserve.training.phases import Phase
from pyserve.training.plans import plan_phases
from pyserve.training.prepare import Prepared, TrainDirs, prepare
from pyserve.training.range_test import RangeTest, range_test
from pyserve.training.stages import Stages
from pyserve.training.step import closing

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest
    from pyserve.spec import TrainSpec


@dataclass(frozen=True)
class TrainOutcome:
    """What came out of a training, or of its part until it was stopped.

    `model` is the plain, torchvision-like module on the CPU with the best weights (of a stopped training without a
    whole epoch: the current ones; None where it was stopped before there was a model).
    """

    status: Status
    model: nn.Module | None
    metrics: Mapping[str, float] = field(default_factory=dict)  # validation "loss", "accuracy" of the best epoch
    best_epoch: int = 0  # counted from 1; 0: none was finished
    epochs_run: int = 0
    stopped_early: bool = False
    history: Sequence[Mapping[str, float]] = ()
    learning_rate: float = 0.0  # highest of the last phase
    elapsed_s: float = 0.0
    image_size: int = 0
    presize: int = 0


def train(
    spec: TrainSpec,
    manifest: Manifest,
    dirs: TrainDirs,
    callbacks: Callbacks,
    *,
    resume: bool = False,
    checkpoint_interval_s: float = 60.0,
    suggested_lr: float | None = None,
    time_budget_s: float | None = None,
) -> TrainOutcome:
    """Train a network on a data set.

    Args:
        spec: what and how; its recipe is not "auto", its learning rate already that of the job in `lr_from`.
        manifest: the data.
        dirs: where to read and write.
        callbacks: who hears about it and may stop it.
        resume: go on from the newest checkpoint in `dirs.job_dir`, if there is one.
        checkpoint_interval_s: a checkpoint at least this often, beside those at the ends of epochs.
        suggested_lr: what a learning-rate finder said, for the spoken warnings.
        time_budget_s: what the epochs may take; a training that will take longer says so.

    Raises:
        FailedPreconditionError: the training diverged, the device is missing, or the checkpoint is of another one.
        DataLossError: every checkpoint is damaged.
        InvalidArgumentError: an unknown architecture, weights that do not fit.
    """
    phases = plan_phases(spec)
    try:
        prepared = prepare(
            spec,
            manifest,
            dirs,
            callbacks,
            checkpoint_interval_s=checkpoint_interval_s,
            suggested_lr=suggested_lr,
            time_budget_s=time_budget_s,
        )
    except Stopped as stop:
        return TrainOutcome(STOPPED_STATUS[stop.kind], None)
    stages = Stages(spec, prepared.network, prepared.pictures, phases, lambda: raise_if_stopped(callbacks))
    learner = Learner(
        prepared.network,
        prepared.config,
        phases,
        stages.of,
        callbacks=callbacks,
        find_rate=_rate_finder(spec, prepared, phases, stages, callbacks),
        store=CheckpointStore(dirs.job_dir / "checkpoints"),
        keep=_snapshot_keeper(spec, prepared, dirs, len(manifest.classes)) if spec.snapshots else None,
        identity=_identity(spec, manifest),
    )
    if resume and learner.restore():
        callbacks.on_log(f"resumed after step {learner.state.step}, epoch {learner.state.epoch}")
    elif not phases[-1].ends_with_cycle:
        message = f"{spec.epochs} epochs end in the middle of a cycle; end at a cycle's end for the best weights"
        callbacks.on_warning("cycle_cut_short", message)
    status = learner.fit()
    metrics = dict(learner.state.best_metrics)
    if status == "done" and spec.tta:
        try:
            metrics |= _with_tta(learner, stages, callbacks)
        except Stopped as stop:
            status = STOPPED_STATUS[stop.kind]
    return _outcome(spec, prepared, learner, status, metrics, len(manifest.classes))


def _rate_finder(
    spec: TrainSpec, prepared: Prepared, phases: Sequence[Phase], stages: Stages, callbacks: Callbacks
) -> Callable[[int, Stage, float], float]:
    """What finds the rate of a phase by a range test.

    Where the curve is of no use, as that of a head which has learnt all it can, the rate of the phase before is a
    better guess than the default.
    """

    def find(index: int, stage: Stage, before: float) -> float:
        phase = phases[index]
        if phase.rate_from_activations:
            stage = stages.on_activations()
        callbacks.on_log(f"looking for the learning rate of phase {index + 1}, {phase.name}")
        curve = range_test(
            stage.network,
            prepared.config,
            stage.train,
            RangeTest(),
            run=index,
            frozen=phase.frozen,
            on_point=callbacks.on_curve_point,
            before_step=lambda: raise_if_stopped(callbacks),
        )
        try:
            found = recommend(suggest_all(useful([curve], callbacks.on_warning)), default_rule(phase.schedule))
        except FailedPreconditionError as error:
            rate = before or spec.effective_learning_rate
            callbacks.on_warning("no_learning_rate_found", f"{error.message}; taking {rate:g} instead")
            return rate
        assert found.learning_rate is not None  # noqa: S101  recommend gives one or raises
        callbacks.on_log(f"rule {found.rule} suggests {found.learning_rate:.3g}")
        return found.learning_rate

    return find


def _snapshot_keeper(spec: TrainSpec, prepared: Prepared, dirs: TrainDirs, classes: int) -> Callable[[int], None]:
    """What keeps the weights after some epochs, for looking at how features came about."""
    facts = SnapshotFacts(spec.architecture, classes, prepared.pictures.image_size, prepared.presize)

    def keep(epoch: int) -> None:
        if epoch in SNAPSHOT_EPOCHS:
            keep_snapshot(dirs.job_dir, epoch, prepared.network.weights(), facts)

    return keep


def _with_tta(learner: Learner, stages: Stages, callbacks: Callbacks) -> dict[str, float]:
    """The best weights' metrics with test-time augmentation."""
    callbacks.on_log("measuring with test-time augmentation")
    with closing(stages.valid_batches().tta_epoch()) as batches:
        measured = evaluate(
            learner.network.model,
            batches,
            lambda: raise_if_stopped(callbacks),
            learner.config.step.precision,
        )
    return {f"tta_{name}": value for name, value in measured.items()}


def _identity(spec: TrainSpec, manifest: Manifest) -> str:
    """What a checkpoint must have been made from: the spec and the pictures."""
    return hashlib.sha256(f"{spec.model_dump_json()} {manifest.digest}".encode()).hexdigest()


def _outcome(
    spec: TrainSpec,
    prepared: Prepared,
    learner: Learner,
    status: Status,
    metrics: Mapping[str, float],
    classes: int,
) -> TrainOutcome:
    state = learner.state
    with torch.random.fork_rng(devices=[]):
        model = models.create_model(spec.architecture, classes)
    model.load_state_dict(learner.best_weights or prepared.network.weights())
    return TrainOutcome(
        status=status,
        model=model.eval(),
        metrics=metrics,
        best_epoch=state.best_epoch,
        epochs_run=state.epoch,
        stopped_early=state.stopped_early,
        history=state.history,
        learning_rate=learner.last_rate,
        elapsed_s=state.elapsed_s,
        image_size=prepared.pictures.image_size,
        presize=prepared.presize,
    )
