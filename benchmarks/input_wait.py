"""How long a training step waits for its data: ours, and torchvision's transforms in a DataLoader.

    python benchmarks/input_wait.py --json benchmarks/results/input_wait.json

A step is: get the next batch, forward, backward, optimiser. Waiting is all the time in the first part, with
augmentation. Ours takes pictures that are decoded already from the cache, and augments batches; the peer is the
usual pipeline, decoding and augmenting picture by picture in worker processes (one per core). Both feed the same
network on our kernels, in turns, in one process; medians over the steps, the first of each round left out. A last
column counts operators that our kernels left to ATen.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import report
from cifar10_folders import write_folders
from pictures import DATA, build, cifar10, folder
from pyserve import kernels
from pyserve._torchvision import torchvision
from pyserve.data.batches import TrainBatches
from pyserve.data.transforms import presize_for
from pyserve.models.registry import IMAGENET_MEAN, IMAGENET_STD
from pyserve.training.optim import make_optimizer, parameter_groups, set_rates
from pyserve.training.range_test import endless
from pyserve.training.step import Batch, TrainStep

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One training."""

    architecture: str
    data: str
    image_size: int
    batch_size: int
    augment: str
    precision: str = "float32"

    @property
    def name(self) -> str:
        """What the table calls it."""
        return (
            f"{self.architecture}, {self.image_size} pixels, {self.batch_size}, {self.augment}, {self.precision}"
        )


CASES = (
    Case("smallnet", "cifar10", 32, 128, "crop"),
    Case("smallnet", "cifar10", 32, 128, "crop", "bfloat16"),
    Case("resnet20", "cifar10", 32, 128, "crop"),
    Case("mobilenet_v2", "cats-dogs", 96, 32, "standard"),
    Case("mobilenet_v2", "cats-dogs", 160, 32, "standard"),
    Case("mobilenet_v2", "cats-dogs", 160, 32, "strong"),
    Case("resnet18", "cats-dogs", 112, 32, "standard"),
)


class Files(Dataset[tuple[torch.Tensor, int]]):
    """Pictures in files, each decoded and augmented when it is asked for."""

    def __init__(self, files: list[tuple[Path, int]], case: Case) -> None:
        torchvision()
        from torchvision.transforms import v2

        size, crop = case.image_size, v2.RandomResizedCrop(case.image_size, scale=(0.35, 1.0))
        views = {
            "crop": [v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")],
            "standard": [crop],
            "strong": [crop, v2.RandomRotation(10), v2.ColorJitter(0.3, 0.3, 0.3)],
        }
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self._transform = v2.Compose([*views[case.augment], v2.RandomHorizontalFlip(), *finish])
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self._files[index]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), label


def ours(case: Case) -> Iterable[Batch]:
    """Batches from the cache of decoded pictures."""
    presize = presize_for(case.image_size, case.augment)
    part = cifar10(presize)[0] if case.data == "cifar10" else folder(case.data, presize)[0]
    batches = TrainBatches(
        part,
        batch_size=case.batch_size,
        augment=case.augment,
        seed=0,
        image_size=case.image_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        device=CPU,
    )
    return endless(batches)


def peers(case: Case, pngs: Path) -> Iterable[Batch]:
    """The usual pipeline, from the files, with a worker for each core."""
    root = pngs if case.data == "cifar10" else DATA / case.data
    classes = sorted(path.name for path in (root / "train").iterdir())
    files = [(path, classes.index(path.parent.name)) for path in sorted((root / "train").glob("*/*"))]
    loader = DataLoader(
        Files(files, case),
        case.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


class Training:
    """A network that learns, and the time of its steps."""

    def __init__(self, case: Case) -> None:
        self._network = build(case.architecture, 10)
        groups = parameter_groups(self._network.model, self._network.layer_groups, (1.0,) * 3, 0.01)
        self._optimizer = make_optimizer("adamw", groups, momentum=0.9)
        set_rates(self._optimizer, 1e-3, None)
        self._step = TrainStep(case.precision)

    def timed(self, batches: Iterator[Batch]) -> tuple[float, float]:
        """Seconds of one step, and of these the wait for the batch."""
        begun = time.perf_counter()
        x, y = next(batches)
        got = time.perf_counter()
        x = x.contiguous(memory_format=torch.channels_last)
        float(self._step.run(self._network.model, self._optimizer, [(x, y)], 0).loss)
        return time.perf_counter() - begun, got - begun


def measure(case: Case, pngs: Path, rounds: int, steps: int) -> dict[str, Any]:
    """One row."""
    training = Training(case)
    streams = {"ours": iter(ours(case)), "peer": iter(peers(case, pngs))}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    before = sum(kernels.info().fallbacks.values())
    for _ in range(rounds):
        for name, batches in streams.items():
            times[name] += [training.timed(batches) for _ in range(steps + 1)][1:]
    row: dict[str, Any] = {"case": case.name}
    for name, found in times.items():
        row[f"{name} step ms"] = 1e3 * statistics.median(whole for whole, _ in found)
        row[f"{name} wait ms"] = 1e3 * statistics.median(wait for _, wait in found)
        row[f"{name} wait %"] = 100 * statistics.median(wait / whole for whole, wait in found)
    row["fallbacks"] = sum(kernels.info().fallbacks.values()) - before
    return row


def main() -> None:
    """Measure all cases."""
    parser = report.arguments(__doc__ or "")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="pyserve-cifar10-") as pngs:
        write_folders(DATA, Path(pngs), 2000)
        for case in CASES[:1] if options.quick else CASES:
            rows.append(measure(case, Path(pngs), 2 if options.quick else 4, 3 if options.quick else 8))
            print(report.table(rows[-1:]), flush=True)
    worst = max(rows, key=lambda row: row["ours wait %"])
    summary = (
        f"Waiting for data takes {worst['ours wait %']:.1f} % of a step at most ({worst['case']}), "
        f"{max(row['peer wait %'] for row in rows):.0f} % with a DataLoader; "
        f"{sum(row['fallbacks'] for row in rows)} operators fell back to ATen."
    )
    print(summary)
    report.write(options.json, "input_wait", rows, summary, ["torch", "torchvision", "pillow"])


if __name__ == "__main__":
    main()
