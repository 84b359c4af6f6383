"""A tiny network, tiny data and a recording listener for the tests of training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from pyserve.training.callbacks import CurvePoint, EpochInfo, Silent, StepInfo, StopKind
from pyserve.training.config import LearnerConfig
from pyserve.training.network import Network
from pyserve.training.phases import Phase
from pyserve.training.seeding import derive_seed
from pyserve.training.step import Batch, TrainStep

CLASSES = 3


class TinyNet(nn.Module):
    """Conv, BatchNorm, dropout, head: one of each thing that a resumed training may get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 8, 3, stride=2)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.body(x)).mean((2, 3))
        return self.fc(self.drop(x))


def tiny_network(seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyNet().to(memory_format=torch.channels_last)
    groups = [
        [*model.stem.parameters(), *model.norm.parameters()],
        list(model.body.parameters()),
        list(model.fc.parameters()),
    ]
    return Network.of(model, groups, groups[-1])


class RandomBatches:
    """Pictures whose class is their brightest channel: learnable; order a pure function of (seed, epoch)."""

    def __init__(self, count: int = 36, batch_size: int = 8, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, 99))
        self.labels = torch.randint(0, CLASSES, (count,), generator=generator)
        self.images = torch.randn(count, 3, 6, 6, generator=generator) * scale
        self.images[torch.arange(count), self.labels] += 1.5 * scale
        self.batch_size, self.seed = batch_size, seed
        self.open_streams = 0
        self.epochs_read: list[int] = []

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        order = torch.randperm(len(self.labels), generator=generator)
        self.open_streams += 1
        self.epochs_read.append(epoch)
        try:
            for batch in order.split(self.batch_size)[start_step:]:
                yield self.images[batch].contiguous(memory_format=torch.channels_last), self.labels[batch]
        finally:
            self.open_streams -= 1


class Recorder(Silent):
    """Writes down what it hears; asks to stop before the step number `stop_at` (counted in questions, from 0)."""

    def __init__(self, stop_at: int | None = None, kind: StopKind = "interrupt") -> None:
        self.stop_at, self.kind, self.asked = stop_at, kind, 0
        self.steps: list[StepInfo] = []
        self.epochs: list[EpochInfo] = []
        self.warnings: list[tuple[str, str]] = []
        self.checkpoints: list[tuple[int, int]] = []
        self.points: list[CurvePoint] = []
        self.lines: list[str] = []

    def on_step(self, info: StepInfo) -> None:
        self.steps.append(info)

    def on_epoch(self, info: EpochInfo) -> None:
        self.epochs.append(info)

    def on_warning(self, code: str, message: str) -> None:
        self.warnings.append((code, message))

    def on_checkpoint(self, step: int, epoch: int) -> None:
        self.checkpoints.append((step, epoch))

    def on_curve_point(self, point: CurvePoint) -> None:
        self.points.append(point)

    def on_log(self, message: str) -> None:
        self.lines.append(message)

    def should_stop(self) -> StopKind | None:
        self.asked += 1
        return self.kind if self.stop_at is not None and self.asked > self.stop_at else None


def tiny_config(**step: object) -> LearnerConfig:
    return LearnerConfig(step=TrainStep(**step), checkpoint_interval_s=1e9)  # type: ignore[arg-type]


PHASES = (Phase(1, 0.01, frozen=True), Phase(2, 0.02))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit (NaN equals itself)."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k].contiguous().numpy().tobytes() == b[k].contiguous().numpy().tobytes()
        for k in a
    )
