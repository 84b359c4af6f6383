"""From a spec to what training and range test have in common: pictures, network on our kernels, settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyserve import models
from pyserve.data.tensors import PartTensors, load_part
from pyserve.data.transforms import evaluation_view, normalize, presize_for
from pyserve.errors import FailedPreconditionError
from pyserve.kernels.fuse import fuse
from pyserve.training.callbacks import Callbacks, raise_if_stopped
from pyserve.training.config import LearnerConfig
from pyserve.training.mixing import Mixing
from pyserve.training.network import Network
from pyserve.training.stages import Pictures
from pyserve.training.step import TrainStep, balanced_class_weights

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest
    from pyserve.spec import TrainSpec

_SAMPLE_PIXELS = 5_000 * 32**2  # enough for statistics of a few pixels side by side


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
class Prepared:
    """The network on its device and the data; `presize` is the side at which pictures are decoded, pixels."""

    network: Network
    config: LearnerConfig
    pictures: Pictures
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
    spec: TrainSpec,
    labels: torch.Tensor,
    classes: int,
    *,
    checkpoint_interval_s: float = 60.0,
    suggested_lr: float | None = None,
    time_budget_s: float | None = None,
) -> LearnerConfig:
    """The part of a spec that says how to learn.

    Args:
        spec: whose recipe is not "auto".
        labels: int64 [N], of the training part, and how many classes there are: for balanced weights.
    """
    step = TrainStep(
        precision=spec.precision,
        label_smoothing=spec.label_smoothing,
        class_weights=balanced_class_weights(labels, classes) if spec.class_weights == "balanced" else None,
        mixing=Mixing(spec.mixup, spec.cutmix),
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
        ema_decay=spec.ema_decay,
        patience=spec.early_stopping_patience,
        monitor=spec.monitor,
        suggested_lr=suggested_lr,
        time_budget_s=time_budget_s,
        checkpoint_interval_s=checkpoint_interval_s,
    )


def prepare(
    spec: TrainSpec,
    manifest: Manifest,
    dirs: TrainDirs,
    callbacks: Callbacks,
    *,
    checkpoint_interval_s: float = 60.0,
    suggested_lr: float | None = None,
    time_budget_s: float | None = None,
) -> Prepared:
    """Decode the pictures (once; then from the cache) and build the network on its device.

    Raises:
        Stopped: `should_stop` asked for it.
    """
    device = choose_device(spec.device)
    architecture = models.get_architecture(spec.architecture)
    image_size = spec.image_size_or(architecture.image_size, architecture.least_image_size)
    presize = presize_for(image_size, spec.augment)
    train, valid = (load_pictures(manifest, part, presize, dirs, callbacks) for part in ("train", "valid"))
    classes = len(manifest.classes)
    pictures = Pictures(train, valid, image_size, architecture.mean, architecture.std, device)
    network = build_network(spec, classes, dirs, callbacks.on_log, device, pictures)
    config = learner_config(
        spec,
        train.labels,
        classes,
        checkpoint_interval_s=checkpoint_interval_s,
        suggested_lr=suggested_lr,
        time_budget_s=time_budget_s,
    )
    return Prepared(network, config, pictures, presize)


def load_pictures(
    manifest: Manifest, part: str, presize: int, dirs: TrainDirs, callbacks: Callbacks
) -> PartTensors:
    """A part of the data, decoded or from the cache.

    Raises:
        Stopped: `should_stop` asked for it.
    """
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


def build_network(
    spec: TrainSpec,
    classes: int,
    dirs: TrainDirs,
    log: Callable[[str], None],
    device: torch.device,
    pictures: Pictures | None = None,
) -> Network:
    """The spec's network as it begins, on our kernels; its random weights depend on the seed alone.

    An architecture whose weights begin with what the training pictures look like (`BeginsWithPictures`) is shown
    some of `pictures`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = models.create_model(spec.architecture, classes)
    if spec.weights:
        source, roots = spec.weights, list(dirs.weights_roots)
        if dirs.weights_path is not None:
            source, roots = str(dirs.weights_path), [*roots, dirs.weights_path.parent]
        report = models.load_weights(model, source, roots=roots, cache_dir=dirs.cache_dir)
        log(f"weights from {spec.weights}: {report}")
    elif pictures is not None and isinstance(model, models.BeginsWithPictures):
        model.begin_with(sample(pictures))
    groups = models.layer_groups(model)
    named = Network.of(model, groups, models.head_parameters(model))
    fused: nn.Module = fuse(model, inference=False)
    fused = fused.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return dataclasses.replace(named, model=fused)


def sample(pictures: Pictures) -> torch.Tensor:
    """Training pictures from all of the part, as the network is shown them: float32 [N, 3, S, S] on the CPU."""
    images, size = pictures.train.images, pictures.image_size
    count = min(max(_SAMPLE_PIXELS // size**2, 1), len(images))
    indices = torch.linspace(0, len(images) - 1, count).long()
    return normalize(evaluation_view(images[indices], size), pictures.mean, pictures.std)
