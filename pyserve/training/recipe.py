"""A training from its spec: data, model on our kernels, phases, learner, and the plain model that comes out.

With `frozen_epochs` the head learns first, on a one-cycle of its own; then everything does, with a fresh
optimiser, on the spec's schedule. This differs from fastai's `fine_tune` in two points: the spec's learning rate
is the highest of both phases, for it is the one the finder suggests, and the head's cycle comes down again, so
that the body never meets a head that is still moving fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyserve import models
from pyserve.data.batches import TrainBatches, ValidBatches
from pyserve.data.manifest import Manifest
from pyserve.data.tensors import PartTensors, load_part
from pyserve.data.transforms import presize_for
from pyserve.errors import FailedPreconditionError
from pyserve.kernels.fuse import fuse
from pyserve.models.snapshots import EPOCHS as SNAPSHOT_EPOCHS
from pyserve.models.snapshots import SnapshotFacts, keep_snapshot
from pyserve.training.callbacks import STOPPED_STATUS, Callbacks, Status, Stopped, raise_if_stopped
from pyserve.training.checkpoint import CheckpointStore
from pyserve.training.learner import Learner, LearnerConfig
from pyserve.training.network import Network
from pyserve.training.phases import Phase
from pyserve.training.step import TrainStep

if TYPE_CHECKING:
    from pyserve.spec import TrainSpec


@dataclass(frozen=True)
class TrainDirs:
    """Where a training reads and writes.

    Args:
        job_dir: its own folder; checkpoints go into `checkpoints` below it.
        cache_dir: decoded pictures and downloaded weights, shared by all jobs.
        weights_roots: folders in which the spec's `weights` may name a file.
        weights_path: the file that the spec's `weights` stands for where it names a stored model.
    """

    job_dir: Path
    cache_dir: Path
    weights_roots: Sequence[Path] = ()
    weights_path: Path | None = None


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
    learning_rate: float = 0.0
    elapsed_s: float = 0.0
    image_size: int = 0
    presize: int = 0


@dataclass(frozen=True)
class Prepared:
    """What training and range test have in common: the network on its device and the data."""

    network: Network
    config: LearnerConfig
    train: TrainBatches
    valid: ValidBatches
    image_size: int
    presize: int


def choose_device(name: str) -> torch.device:
    """The device of a spec: "auto" takes a GPU where there is one.

    Raises:
        FailedPreconditionError: "cuda" where torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise FailedPreconditionError("device: got 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def learner_config(
    spec: TrainSpec, *, checkpoint_interval_s: float = 60.0, suggested_lr: float | None = None
) -> LearnerConfig:
    """The part of a spec that says how to learn."""
    step = TrainStep(
        precision=spec.precision,
        label_smoothing=spec.label_smoothing,
        gradient_accumulation=spec.gradient_accumulation,
        gradient_clip_norm=spec.gradient_clip_norm,
        seed=spec.seed,
    )
    return LearnerConfig(
        step=step,
        optimizer=spec.optimizer,
        momentum=spec.momentum,
        weight_decay=spec.effective_weight_decay,
        body_lr_factor=spec.body_lr_factor,
        # without weights the statistics of a body are still to be made
        freeze_batch_norm=bool(spec.weights) and spec.effective_freeze_batch_norm,
        patience=spec.early_stopping_patience,
        monitor=spec.monitor,
        suggested_lr=suggested_lr,
        checkpoint_interval_s=checkpoint_interval_s,
    )


def plan_phases(spec: TrainSpec) -> tuple[Phase, ...]:
    """Head only for `frozen_epochs`, then the spec's epochs on its schedule."""
    rate = spec.effective_learning_rate
    main = Phase(
        spec.epochs,
        rate,
        spec.schedule,
        cycle_epochs=spec.cycle_epochs,
        cycle_mult=spec.cycle_mult,
        frozen=spec.freeze_body,
    )
    return (Phase(spec.frozen_epochs, rate, frozen=True), main) if spec.frozen_epochs else (main,)


def prepare(
    spec: TrainSpec, manifest: Manifest, dirs: TrainDirs, callbacks: Callbacks, config: LearnerConfig
) -> Prepared:
    """Decode the pictures (once; then from the cache) and build the network on its device.

    Raises:
        Stopped: `should_stop` asked for it.
    """
    device = choose_device(spec.device)
    architecture = models.get_architecture(spec.architecture)
    image_size = spec.image_size or architecture.image_size
    presize = presize_for(image_size, spec.augment)
    view: dict[str, Any] = {
        "image_size": image_size,
        "mean": architecture.mean,
        "std": architecture.std,
        "device": device,
    }
    parts = {part: _load_part(manifest, part, presize, dirs, callbacks) for part in ("train", "valid")}
    train = TrainBatches(parts["train"], batch_size=spec.batch_size, augment=spec.augment, seed=spec.seed, **view)
    valid = ValidBatches(parts["valid"], batch_size=spec.batch_size, **view)
    network = _build_network(spec, len(manifest.classes), dirs, callbacks, device)
    return Prepared(network, config, train, valid, image_size, presize)


def train(
    spec: TrainSpec,
    manifest: Manifest,
    dirs: TrainDirs,
    callbacks: Callbacks,
    *,
    resume: bool = False,
    checkpoint_interval_s: float = 60.0,
    suggested_lr: float | None = None,
) -> TrainOutcome:
    """Train a network on a data set.

    Args:
        spec: what and how; its learning rate is already that of `lr_from` where one is taken from there.
        manifest: the data.
        dirs: where to read and write.
        callbacks: who hears about it and may stop it.
        resume: go on from the newest checkpoint in `dirs.job_dir`, if there is one.
        checkpoint_interval_s: a checkpoint at least this often, beside those at the ends of epochs.
        suggested_lr: what a learning-rate finder said, for the spoken warnings.

    Raises:
        FailedPreconditionError: the training diverged, the device is missing, or the checkpoint is of another one.
        DataLossError: every checkpoint is damaged.
        InvalidArgumentError: an unknown architecture, weights that do not fit.
    """
    config = learner_config(spec, checkpoint_interval_s=checkpoint_interval_s, suggested_lr=suggested_lr)
    try:
        prepared = prepare(spec, manifest, dirs, callbacks, config)
    except Stopped as stop:
        return TrainOutcome(STOPPED_STATUS[stop.kind], None)
    phases = plan_phases(spec)
    learner = Learner(
        prepared.network,
        config,
        prepared.train,
        prepared.valid,
        phases,
        callbacks=callbacks,
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
    return _outcome(spec, prepared, learner, status, len(manifest.classes))


def _snapshot_keeper(spec: TrainSpec, prepared: Prepared, dirs: TrainDirs, classes: int) -> Callable[[int], None]:
    """What keeps the weights after some epochs, for looking at how features came about."""
    facts = SnapshotFacts(spec.architecture, classes, prepared.image_size, prepared.presize)

    def keep(epoch: int) -> None:
        if epoch in SNAPSHOT_EPOCHS:
            keep_snapshot(dirs.job_dir, epoch, prepared.network.weights(), facts)

    return keep


def _load_part(manifest: Manifest, part: str, presize: int, dirs: TrainDirs, callbacks: Callbacks) -> PartTensors:
    count = len(manifest.part_items(part))
    callbacks.on_log(f"reading {count} pictures of the {part} part at {presize} pixels")
    return load_part(
        manifest,
        part,
        presize,
        dirs.cache_dir,
        threads=torch.get_num_threads(),
        progress=lambda done, total: raise_if_stopped(callbacks),
    )


def _build_network(
    spec: TrainSpec, classes: int, dirs: TrainDirs, callbacks: Callbacks, device: torch.device
) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = models.create_model(spec.architecture, classes)
    if spec.weights:
        source, roots = spec.weights, list(dirs.weights_roots)
        if dirs.weights_path is not None:
            source, roots = str(dirs.weights_path), [*roots, dirs.weights_path.parent]
        report = models.load_weights(model, source, roots=roots, cache_dir=dirs.cache_dir)
        callbacks.on_log(f"weights from {spec.weights}: {report}")
    groups = models.layer_groups(model)
    named = Network.of(model, groups, models.head_parameters(model))
    fused: nn.Module = fuse(model, inference=False)
    fused = fused.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return Network(fused, named.layer_groups, named.head)


def _identity(spec: TrainSpec, manifest: Manifest) -> str:
    """What a checkpoint must have been made from: the spec and the pictures."""
    return hashlib.sha256(f"{spec.model_dump_json()} {manifest.digest}".encode()).hexdigest()


def _outcome(spec: TrainSpec, prepared: Prepared, learner: Learner, status: Status, classes: int) -> TrainOutcome:
    state = learner.state
    with torch.random.fork_rng(devices=[]):
        model = models.create_model(spec.architecture, classes)
    model.load_state_dict(learner.best_weights or prepared.network.weights())
    return TrainOutcome(
        status=status,
        model=model.eval(),
        metrics=state.best_metrics,
        best_epoch=state.best_epoch,
        epochs_run=state.epoch,
        stopped_early=state.stopped_early,
        history=state.history,
        learning_rate=spec.effective_learning_rate,
        elapsed_s=state.elapsed_s,
        image_size=prepared.image_size,
        presize=prepared.presize,
    )
