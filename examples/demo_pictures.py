"""The demo's pictures: digits from scikit-learn or a folder of the user's, some held out, and a plan for them."""

from __future__ import annotations

import os
import random
import re
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
SMALL_PIXELS = 64
DIGIT_PIXELS = 32
MAX_UNSEEN = 100
# Pictures learnt from per second and core, forward and backward, on a plain two-core machine; on the low side, so
# that the time limit holds. A GPU is faster by about GPU_FACTOR than two cores.
RATES = {"smallnet": 250.0, "resnet18": 16.0}
GPU_FACTOR = 40.0
TRAIN_S = 130.0


class Item(NamedTuple):
    """A picture of the user's; `part` is "train", "valid" or, where the folder has neither, ""."""

    part: str
    label: str
    path: Path


class DataProblem(Exception):  # noqa: N818  # reads as what it is
    """The user's folder or option cannot be used."""


@dataclass(frozen=True)
class Plan:
    """What to train, and for how long."""

    architecture: str
    image_size: int
    batch_size: int
    epochs: int
    finder_steps: int
    augment: str

    def training(self) -> dict[str, Any]:
        """The fields that finder and training share."""
        return {
            "architecture": self.architecture,
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "augment": self.augment,
        }

    def describe(self) -> str:
        """In one line."""
        return f"{self.architecture} on {self.image_size}-pixel pictures, {self.epochs} epochs"


@dataclass(frozen=True)
class Pictures:
    """Pictures ready for the demo.

    Attributes:
        folder: to be uploaded.
        unseen: (path, label) of pictures that are not in it.
        train_count: about how many will be learnt from.
        side: short side of a typical one, pixels.
    """

    name: str
    folder: Path
    unseen: list[tuple[Path, str]]
    train_count: int
    side: int
    augment: str
    description: str

    def plan(self, cores: int, *, gpu: bool) -> Plan:
        """A training that fits the time."""
        small = self.side <= SMALL_PIXELS
        architecture = "smallnet" if small else "resnet18"
        size = max(16, round(self.side / 8) * 8) if small else 128
        per_run = TRAIN_S * capacity(architecture, cores) * (GPU_FACTOR if gpu else 1)
        epochs = max(1, min(20 if small else 12, int(per_run / self.train_count)))
        batch = max(8, min(64 if small else 32, self.train_count // 8))
        return Plan(architecture, size, batch, epochs, finder_steps=100 if small else 60, augment=self.augment)


def capacity(architecture: str, cores: int) -> float:
    """Pictures learnt from per second."""
    return RATES[architecture] * min(cores, 8)


def digits(folder: Path) -> Pictures:
    """scikit-learn's 1,797 handwritten digits, 8×8, enlarged to PNG files; ten of each held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = list(range(len(data.target)))
    random.Random(0).shuffle(order)
    unseen: list[tuple[Path, str]] = []
    for i in order:
        label = str(data.target[i])
        held_out = sum(other == label for _, other in unseen) < MAX_UNSEEN // 10
        path = folder / ("unseen" if held_out else "pictures") / label / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((data.images[i] * (255 / 16)).round().astype("uint8"))
        picture.resize((DIGIT_PIXELS, DIGIT_PIXELS), Image.Resampling.BICUBIC).save(path)
        if held_out:
            unseen.append((path, label))
    count = len(order) - len(unseen)
    description = f"{len(order)} handwritten digits from scikit-learn; {len(unseen)} of them held out"
    return Pictures(
        name="digits",
        folder=folder / "pictures",
        unseen=unseen,
        train_count=round(0.8 * count),
        side=DIGIT_PIXELS,
        augment="none",  # a mirrored or cropped digit is another digit
        description=description,
    )


def own_pictures(data: Path, folder: Path, cores: int) -> Pictures:
    """The user's pictures, linked into the demo's folder: some held out, no more than the time allows.

    Raises:
        DataProblem: where it is not a folder of at least two classes with at least four pictures each.
    """
    parts = _parts(data)
    found = [Item(part, label, path) for part, root in parts.items() for label, path in _labelled(root)]
    _check(data, found)
    random.Random(0).shuffle(found)
    side = _typical_side([item.path for item in found])
    architecture = "smallnet" if side <= SMALL_PIXELS else "resnet18"
    most = int(TRAIN_S * capacity(architecture, cores) / 3)  # at least three epochs
    last = "valid" if "valid" in parts else ""
    unseen = _hold_out([item for item in found if item.part == last])
    held_out = set(unseen)
    kept = _limit([item for item in found if item not in held_out], most)
    for item in kept:
        link = folder / "pictures" / item.part / item.path.relative_to(parts[item.part])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(item.path.resolve())
    train = sum(item.part == "train" for item in kept) if last else round(0.8 * len(kept))
    classes = len({item.label for item in found})
    used = len(kept) + len(unseen)
    count = f"{used} pictures" if used == len(found) else f"{used} of {len(found)} pictures (as time allows)"
    return Pictures(
        name=re.sub(r"[^a-z0-9_-]+", "-", data.resolve().name.lower()).strip("-_")[:60] or "pictures",
        folder=folder / "pictures",
        unseen=[(item.path, item.label) for item in unseen],
        train_count=max(1, train),
        side=side,
        augment="crop" if side <= SMALL_PIXELS else "standard",
        description=f"{count} of {classes} classes in {data}; {len(unseen)} held out",
    )


def _parts(data: Path) -> dict[str, Path]:
    """Part → folder of classes; "" where the folder has no train/ and valid/ of its own."""
    if not data.is_dir():
        raise DataProblem(f"DATA: got {data}, expected a folder with one sub-folder per class")
    if (data / "train").is_dir() and (data / "valid").is_dir():
        return {"train": data / "train", "valid": data / "valid"}
    return {"": data}


def _labelled(root: Path) -> list[tuple[str, Path]]:
    """(label, path) of all pictures below the class folders of `root`, hidden ones left out."""
    return [
        (folder.name, path)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _check(data: Path, found: list[Item]) -> None:
    labels = [item.label for item in found]
    few = [label for label in sorted(set(labels)) if labels.count(label) < 4]
    if len(set(labels)) < 2:
        names = ", ".join(sorted(set(labels))) or "none"
        raise DataProblem(f"DATA: got {data} with pictures of {names}, expected at least two folders of pictures")
    if few:
        raise DataProblem(
            f"DATA: got fewer than 4 pictures in {', '.join(few[:5])}, expected at least 4 per class"
        )


def _hold_out(found: list[Item]) -> list[Item]:
    """About one picture in twenty, spread over the classes; none of a class that has few."""
    most = min(MAX_UNSEEN, len(found) // 20)
    labels = [item.label for item in found]
    quota = {label: labels.count(label) // 10 for label in set(labels)}
    chosen = []
    for item in found:
        if len(chosen) < most and quota[item.label] > 0:
            quota[item.label] -= 1
            chosen.append(item)
    return chosen


def _limit(items: list[Item], most: int, least_per_class: int = 8) -> list[Item]:
    """The first `most` pictures, taken from all classes in turn, but at least some of each."""
    turns: Counter[tuple[str, str]] = Counter()
    ranked = []
    for item in items:
        ranked.append((turns[item.part, item.label], item))
        turns[item.part, item.label] += 1
    ranked.sort(key=lambda pair: pair[0])
    return [item for _, item in ranked[: max(most, least_per_class * len(turns))]]


def _typical_side(paths: list[Path], sample: int = 40) -> int:
    """Median short side, pixels, of some pictures that can be opened."""
    sides = []
    for path in paths[:sample]:
        try:
            with Image.open(path) as picture:
                sides.append(min(picture.size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue  # the server names and leaves out what cannot be read
    if not sides:
        raise DataProblem(f"DATA: none of {min(sample, len(paths))} pictures can be opened, {os.fspath(paths[0])}")
    return int(statistics.median(sides))
