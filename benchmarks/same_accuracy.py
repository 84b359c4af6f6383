"""Trains a small network on CIFAR-10 with our kernels and with PyTorch's, and compares what accuracy each reaches.

    PYSERVE_TEST_DATA=… python benchmarks/same_accuracy.py --threads 1 --json benchmarks/results/same_accuracy.json

ResNet-20, float32; for each seed both start from the same weights and see the same pictures in the same order, for
the same number of steps. Rounding differs, and training amplifies it: the same accuracy is one whose mean differs
by less than the seeds do. A short run: the accuracy is far from what the network reaches in hours.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import report
from pyserve.kernels import fuse
from pyserve.models import create_model

sys.path.insert(0, str(report.ROOT))
from tests.cifar10 import read  # the test data's layout

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)  # of the training images
_BATCH = 128
_LR = 0.1


def images(part: Any, files: range) -> tuple[Tensor, Tensor]:
    """Normalised images [N, 3, 32, 32], channels-last, and their labels."""
    data = Path(os.environ.get("PYSERVE_TEST_DATA", report.ROOT.parent / "shared" / "data"))
    pixels, labels = read(data, part, files)
    x = (torch.from_numpy(pixels).float() / 255 - torch.tensor(_MEAN)) / torch.tensor(_STD)
    return x.permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    """SGD with momentum under a one-cycle schedule; pictures are mirrored at random."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(x) // _BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9, weight_decay=5e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for batch in order[: len(x) // _BATCH * _BATCH].split(_BATCH):
            mirrored = torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5
            inputs = torch.where(mirrored, x[batch].flip(3), x[batch])
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), y[batch]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of the images that are classified right."""
    model.eval()
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * right / len(x)


def main() -> None:
    parser = report.arguments("the same accuracy as with PyTorch's kernels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--thousands", type=int, default=10, help="training images, in thousands, of 50")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.seeds, options.epochs, options.thousands = 1, 1, 1
    x, y = images("train", range(options.thousands))
    test_x, test_y = images("test", range(1 if options.quick else 10))
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        plain = create_model("resnet20", 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        models = {"ours": fuse(copy.deepcopy(plain), inference=False), "PyTorch": plain}
        row: dict[str, Any] = {"seed": seed}
        for name, model in models.items():
            start = time.perf_counter()
            train(model, x, y, options.epochs, seed)
            elapsed = time.perf_counter() - start
            row |= {f"{name} %": accuracy(model, test_x, test_y), f"{name} s": elapsed}
        rows.append(row)
        print(row, flush=True)
    told = []
    for name in ("ours", "PyTorch"):
        found = [row[f"{name} %"] for row in rows]
        told.append(f"{name} {statistics.fmean(found):.2f} % ({min(found):.2f} to {max(found):.2f})")
    steps = options.epochs * (len(x) // _BATCH)
    summary = (
        f"ResNet-20 on CIFAR-10, {len(x)} training images, {steps} steps of {_BATCH}, {options.seeds} seeds, "
        f"{options.threads} threads; accuracy on {len(test_x)} test images, mean and range: {'; '.join(told)}."
    )
    print(summary)
    report.write(options.json, "same_accuracy", rows, summary, ["torch"])


if __name__ == "__main__":
    main()
