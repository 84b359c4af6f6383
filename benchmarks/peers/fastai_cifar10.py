"""CIFAR-10 with fastai, for `time_to_accuracy.py`; runs in the environment that has fastai."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from pyserve import models
from pyserve._torchvision import torchvision

torchvision()  # fastai's import of it fails where it lacks its own operators
from fastai.vision import all as fastai  # noqa: E402

BATCH = 128
BEGINNING = 2048  # pictures
UNTIMED, TIMED = 10, 30  # steps
VALID_SHARE = 1 / 3  # what a batch costs without its backward pass
MARGIN = 0.97  # of the time that the epochs may take


class Stopwatch(fastai.Callback):
    """Times some steps and ends the training."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def after_batch(self) -> None:
        """A step is done."""
        self.times.append(time.monotonic())
        if len(self.times) >= UNTIMED + TIMED:
            raise fastai.CancelFitException

    @property
    def step_s(self) -> float:
        """Median of the timed steps."""
        kept = self.times[UNTIMED:]
        return statistics.median(b - a for a, b in itertools.pairwise(kept))


def learner(folder: Path, network: str, seed: int) -> Any:
    """fastai's, with our network in plain PyTorch, which has seen a few batches where it begins with pictures."""
    fastai.set_seed(seed)
    normalise = fastai.Normalize.from_stats(*fastai.cifar_stats)
    loaders = fastai.ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="valid",
        bs=BATCH,
        num_workers=os.cpu_count() or 1,
        batch_tfms=[*fastai.aug_transforms(size=32, min_scale=0.75), normalise],
        device=torch.device("cpu"),
    )
    model = models.create_model(network, 10)
    if isinstance(model, models.BeginsWithPictures):
        seen = itertools.islice(loaders.train, BEGINNING // BATCH)
        model.begin_with(torch.cat([pictures for pictures, _ in seen]).as_subclass(torch.Tensor))
    return fastai.Learner(
        loaders,
        model,
        loss_func=fastai.CrossEntropyLossFlat(),
        metrics=fastai.accuracy,
    )


def trained(folder: Path, network: str, minutes: float, seed: int) -> dict[str, Any]:
    """fastai: a rate from lr_find, one-cycle for as many epochs as fit."""
    begun = time.monotonic()
    quiet = learner(folder, network, seed)
    with quiet.no_bar(), quiet.no_logging():
        watch = Stopwatch()
        quiet.fit(UNTIMED + TIMED, cbs=watch)  # epochs: it ends itself before
        rate = quiet.lr_find(show_plot=False).valley
    learn = learner(folder, network, seed)
    steps = len(learn.dls.train) + VALID_SHARE * len(learn.dls.valid)
    left_s = 60 * minutes - (time.monotonic() - begun)
    epochs = max(1, int(MARGIN * left_s / (steps * watch.step_s)))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, rate)
    measured = [values[2] for values in learn.recorder.values]
    return {
        "fastai %": 100 * measured[-1],
        "fastai best epoch %": 100 * max(measured),
        "fastai minutes": (time.monotonic() - begun) / 60,
        "fastai epochs": epochs,
    }
