"""A training: its learning rate, the model that it stores, its figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import pyserve
from pyserve import kernels
from pyserve.data.catalog import Catalog
from pyserve.data.tensors import load_part
from pyserve.errors import FailedPreconditionError
from pyserve.inference.bundle import save_bundle
from pyserve.inference.description import Preprocessing
from pyserve.inference.model_info import ModelInfo
from pyserve.inference.model_store import ModelStore
from pyserve.jobs.events import JobState, StepDone
from pyserve.jobs.lr_from import finder_of
from pyserve.jobs.paths import CACHE_FOLDER, job_folder
from pyserve.jobs.records import TrainResult
from pyserve.jobs.worker.artifacts import keep_figure
from pyserve.jobs.worker.report import Ending, JobCallbacks
from pyserve.models import get_architecture
from pyserve.spec import comparable
from pyserve.training.auto import decide
from pyserve.training.callbacks import STOPPED_STATUS, Stopped
from pyserve.training.prepare import TrainDirs
from pyserve.training.recipe import TrainOutcome, train

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest
    from pyserve.insight.figures import FigureFile
    from pyserve.jobs.runner import WorkerOrder
    from pyserve.jobs.worker.process import Control
    from pyserve.jobs.worker.report import JobReport
    from pyserve.spec import TrainSpec
    from pyserve.training.callbacks import Status

_GOLDEN_PICTURES = 8
_CURVE_POINTS = 2000


def run_training(spec: TrainSpec, order: WorkerOrder, report: JobReport, control: Control) -> Ending:
    """Train, or go on from the last checkpoint, and store the model."""
    manifest = Catalog(order.data_dir).get(spec.dataset)
    spec, suggested_lr = with_suggested_rate(spec, manifest, report)
    dirs, callbacks, epochs_s = train_dirs(spec, order), JobCallbacks(report, control), None
    if spec.recipe == "auto":
        elapsed_s = time.time() - (report.record.start_time or time.time())
        try:
            spec, epochs_s = decide(spec, manifest, dirs, callbacks, elapsed_s=elapsed_s, resume=report.resumes)
        except Stopped as stop:
            return stopped(STOPPED_STATUS[stop.kind], control)
    outcome = train(
        spec,
        manifest,
        dirs,
        callbacks,
        resume=report.resumes,
        checkpoint_interval_s=order.checkpoint_interval_s,
        suggested_lr=suggested_lr,
        time_budget_s=epochs_s,
    )
    if outcome.status != "done" or outcome.model is None:
        return stopped(outcome.status, control)
    model = outcome.model
    keep_figure("training", lambda: _curves(outcome, report), order, report)
    keep_figure("filters", lambda: _filters(model), order, report)
    if control.stop == "cancel":
        return stopped("cancelled", control)
    name = _store_model(spec, manifest, outcome, model, order, report)
    result = TrainResult(
        model=name,
        best_epoch=outcome.best_epoch,
        epochs_run=outcome.epochs_run,
        stopped_early=outcome.stopped_early,
        metrics=dict(outcome.metrics),
        learning_rate=outcome.learning_rate,
        elapsed_s=outcome.elapsed_s,
    )
    return Ending(JobState.SUCCEEDED, result=result)


def stopped(status: Status, control: Control) -> Ending:
    """The end of a job that was asked to stop."""
    if status == "cancelled":
        return Ending(JobState.CANCELLED, "cancelled on request")
    return Ending(JobState.INTERRUPTED, control.reason)


def train_dirs(spec: TrainSpec, order: WorkerOrder) -> TrainDirs:
    """Where a job reads and writes."""
    stored = ModelStore(order.data_dir).get(spec.weights) if spec.weights.startswith("models/") else None
    return TrainDirs(
        job_dir=job_folder(order.data_dir, order.name),
        cache_dir=order.data_dir / CACHE_FOLDER,
        weights_roots=order.weights_roots,
        weights_path=stored.weights_path if stored else None,
    )


def with_suggested_rate(spec: TrainSpec, manifest: Manifest, report: JobReport) -> tuple[TrainSpec, float | None]:
    """The spec with the rate of its `lr_from` where it has none of its own, and that rate.

    Raises:
        FailedPreconditionError: the finder looked at something else, and `lr_from_policy` is "refuse".
    """
    found = finder_of(report.store, spec)
    if found is None:
        return spec, None
    finder, result = found
    differences = comparable(spec, finder, (manifest.digest, result.dataset_digest))
    if differences:
        message = f"{spec.lr_from} looked for the learning rate of another training: {'; '.join(differences)}"
        if spec.lr_from_policy == "refuse":
            raise FailedPreconditionError(f"train.lr_from: {message}")
        report.warn("lr_from_differs", message)
    if spec.learning_rate is None:
        spec = spec.model_copy(update={"learning_rate": result.learning_rate})
    return spec, result.learning_rate


def _store_model(
    spec: TrainSpec,
    manifest: Manifest,
    outcome: TrainOutcome,
    model: nn.Module,
    order: WorkerOrder,
    report: JobReport,
) -> str:
    """Add the model to the store, once: a worker before this one may have died right after doing so."""
    models = ModelStore(order.data_dir)
    if report.resumes:
        for info in _versions_since(models, report.record.create_time):
            if info.provenance.get("job") == order.name:
                return info.name
    architecture = get_architecture(spec.architecture)
    preprocessing = Preprocessing(
        image_size=outcome.image_size, presize=outcome.presize, mean=architecture.mean, std=architecture.std
    )
    golden = _golden_pictures(manifest, outcome.presize, order)

    def write(folder: Path) -> None:
        save_bundle(
            folder,
            model,
            architecture=spec.architecture,
            labels=manifest.classes,
            preprocessing=preprocessing,
            golden_inputs=golden,
            metrics=outcome.metrics,
            provenance=_provenance(spec, manifest, order),
        )

    return models.add(spec.output_model_id, write)


def _versions_since(models: ModelStore, time: float) -> Iterator[ModelInfo]:
    token = ""
    while True:
        page, token = models.list(page_token=token)
        for info in page:
            if info.create_time < time:
                return
            yield info
        if not token:
            return


def _golden_pictures(manifest: Manifest, presize: int, order: WorkerOrder) -> torch.Tensor:
    """A few pictures, evenly spread over the validation part and so over its classes."""
    part = load_part(
        manifest, "valid", presize, order.data_dir / CACHE_FOLDER, threads=torch.get_num_threads(), progress=None
    )
    count = len(part.labels)
    index = torch.linspace(0, count - 1, min(_GOLDEN_PICTURES, count)).round().long()
    return part.images[index].clone()


def _provenance(spec: TrainSpec, manifest: Manifest, order: WorkerOrder) -> dict[str, str]:
    info = kernels.info()
    return {
        "dataset": spec.dataset,
        "dataset_digest": manifest.digest,
        "job": order.name,
        "seed": str(spec.seed),
        "recipe": spec.model_dump_json(),
        "pyserve": pyserve.__version__,
        "kernels": f"{info.isa_in_use}, cuda {'loaded' if info.cuda_loaded else 'not loaded'}",
        "kernel_calls": ", ".join(f"{v.name} {v.calls}" for v in info.variants if v.calls),
        "fell_back_to_aten": "; ".join(f"{what} ({calls})" for what, calls in info.fallbacks.items()) or "nothing",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def _curves(outcome: TrainOutcome, report: JobReport) -> Sequence[FigureFile]:
    from pyserve.insight.figures import training_curves  # matplotlib is slow to load, and needed last

    payloads = (event.payload for event in report.store.log(report.record.name))
    steps = {p.step: p for p in payloads if isinstance(p, StepDone)}
    every = len(steps) // _CURVE_POINTS + 1
    epochs = outcome.history[-1]["epoch"] / outcome.history[-1]["step"]
    points = [(step * epochs, p.loss, p.learning_rates[-1]) for step, p in sorted(steps.items())[::every]]
    return training_curves(outcome.history, best_epoch=outcome.best_epoch, steps=points)


def _filters(model: nn.Module) -> Sequence[FigureFile]:
    from pyserve.insight.figures import filters

    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    return filters(first.weight.detach().float().numpy())
