"""Time to accuracy on cats and dogs: ours against the usual loop with the same network, weights and rates.

    nice -n 15 python benchmarks/usual_loop.py --json benchmarks/results/usual_loop.json

The usual loop is what fastai and PyTorch's tutorials do: torchvision's model and transforms, a DataLoader with a
worker for each core, eager float32; the frozen body's head for one epoch, then everything on a one-cycle with
discriminative rates, BatchNorm statistics of the body frozen. Ours is the recipe that `auto` chooses: the head on
activations computed once, then everything on pictures that grow, on our kernels. Both adapt MobileNetV2 for as
many epochs, in turns; validation is part of the time, decoding the pictures for ours, too. Processor time of all
processes is told beside the time on the clock, for it suffers less from what else the machine does.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import report
from pictures import DATA, MOBILENET
from pyserve import kernels, models
from pyserve._torchvision import torchvision
from pyserve.data.folder import ScanOptions, scan
from pyserve.jobs.worker.process import keep_freed_memory
from pyserve.models.registry import IMAGENET_MEAN, IMAGENET_STD
from pyserve.spec import TrainSpec
from pyserve.training.callbacks import EpochInfo, Silent
from pyserve.training.optim import group_factors
from pyserve.training.prepare import TrainDirs
from pyserve.training.recipe import train

NAME = "cats-dogs"
RATE, BODY = 1e-3, 0.01
MARKS = (96.0, 97.0, 97.5, 98.0, 98.4)  # % of the validation pictures

Row = dict[str, Any]
Tell = Callable[[str, float], None]


def spent() -> float:
    """Processor seconds of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Timeline:
    """Accuracy against time."""

    def __init__(self, who: str) -> None:
        self._who, self._begun, self._spent = who, time.monotonic(), spent()
        self.rows: list[Row] = []

    def tell(self, what: str, accuracy: float) -> None:
        """Something was measured."""
        row = {
            "who": self._who,
            "after": what,
            "accuracy %": round(100 * accuracy, 2),
            "minutes": (time.monotonic() - self._begun) / 60,
            "processor s": spent() - self._spent,
        }
        print(report.table([row]).splitlines()[-1], flush=True)
        self.rows.append(row)

    def reached(self, mark: float) -> float | None:
        """Processor seconds until so many per cent were right."""
        return next((row["processor s"] for row in self.rows if row["accuracy %"] >= mark), None)


def ours(size: int, epochs: int, seed: int, precision: str, tell: Tell) -> None:
    """The recipe, from the files on."""

    class Listener(Silent):
        def on_epoch(self, info: EpochInfo) -> None:
            tell(f"{info.phase}, epoch {info.epoch}", info.metrics["accuracy"])

    manifest = scan(NAME, DATA / NAME, ScanOptions(), max_pixels=10**8, max_files=10**6)
    spec = TrainSpec(
        dataset=f"datasets/{NAME}",
        architecture="mobilenet_v2",
        weights=MOBILENET,
        image_size=size,
        start_image_size=round(0.7 * size),
        batch_size=32,
        frozen_epochs=3,
        precompute=True,
        epochs=epochs,
        learning_rate=RATE,
        body_lr_factor=BODY,
        precision=precision,
        seed=seed,
        tta=True,
        device="cpu",
    )
    with tempfile.TemporaryDirectory(prefix="pyserve-speed-") as folder:
        dirs = TrainDirs(Path(folder) / "job", Path(folder) / "cache", weights_roots=[DATA / "weights"])
        outcome = train(spec, manifest, dirs, Listener())
    tell("test-time augmentation", outcome.metrics["tta_accuracy"])


class Files(Dataset[tuple[torch.Tensor, int]]):
    """Pictures of a part, decoded and transformed one by one."""

    def __init__(self, part: str, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        root = DATA / NAME / part
        classes = sorted(path.name for path in root.iterdir())
        self._files = [(path, classes.index(path.parent.name)) for path in sorted(root.glob("*/*"))]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self._files[index]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), label


def loaders(size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and validation."""
    torchvision()
    from torchvision.transforms import v2

    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    learn = v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0)), v2.RandomHorizontalFlip(), *finish])
    look = v2.Compose([v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size), *finish])
    workers = os.cpu_count() or 1
    train_loader = DataLoader(Files("train", learn), 32, shuffle=True, drop_last=True, num_workers=workers)
    return train_loader, DataLoader(Files("valid", look), 32, num_workers=workers)


def usual(size: int, epochs: int, seed: int, precision: str, tell: Tell) -> None:
    """The usual loop; `precision` plays no part in it."""
    del precision
    torch.manual_seed(seed)
    learn, look = loaders(size)
    model = models.create_model("mobilenet_v2", 2)
    models.load_weights(model, MOBILENET, roots=[DATA / "weights"], cache_dir=Path(tempfile.gettempdir()))
    groups = models.layer_groups(model)
    for phase, count in (("head", 1), ("whole network", epochs)):
        for group in groups[:-1]:
            for parameter in group:
                parameter.requires_grad_(phase != "head")
        chosen = groups[-1:] if phase == "head" else groups
        factors = group_factors(len(chosen), BODY)
        rates = [RATE * factor for factor in factors]
        optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, rate in zip(chosen, rates, strict=True)], weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=count * len(learn))
        for epoch in range(count):
            model.train()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            for x, y in learn:
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
            tell(f"{phase}, epoch {epoch + 1}", accuracy(model, look))


@torch.no_grad()
def accuracy(model: nn.Module, look: DataLoader[Any]) -> float:
    """Of the validation pictures."""
    model.eval()
    right = [model(x).argmax(1) == y for x, y in look]
    return float(torch.cat(right).float().mean())


def main() -> None:
    """Train both ways, seed by seed."""
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=160, help="pixels")
    parser.add_argument("--epochs", type=int, default=3, help="of everything")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of ours")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a training job does
    size, epochs = (64, 1) if options.quick else (options.size, options.epochs)
    rows: list[Row] = []
    told = []
    for seed in range(options.seeds):
        lines = {"ours": Timeline("ours")}
        ours(size, epochs, seed, options.precision, lines["ours"].tell)
        lines["usual loop"] = Timeline("usual loop")
        usual(size, epochs, seed, options.precision, lines["usual loop"].tell)
        rows += [{"seed": seed, **row} for line in lines.values() for row in line.rows]
        for mark in MARKS:
            mine, theirs = (line.reached(mark) for line in lines.values())
            if mine is not None:
                against = f"{theirs:.0f} s" if theirs is not None else "not reached"
                told.append(f"{mark:g} %: {mine:.0f} s of processor time, usual loop {against}")
    fallbacks = sum(kernels.info().fallbacks.values())
    summary = f"{size} pixels, {epochs} epochs: {'; '.join(told)}. {fallbacks} operators fell back to ATen."
    print(summary)
    report.write(options.json, "usual_loop", rows, summary, ["torch", "torchvision", "pillow"])


if __name__ == "__main__":
    main()
