"""Accuracy after the same minutes on CIFAR-10, with the same network: recipe `auto` against fastai.

    nice -n 15 python benchmarks/time_to_accuracy.py --json benchmarks/results/time_to_accuracy.json

Both train our `whitenednet`, its first layer set from the training pictures, begin with PNG files and get the
minutes of the mark, all included; each mark is a training of its own, for both plan their schedule for the time.
fastai does what its documentation does: ImageDataLoaders with a worker for each core, aug_transforms in batches,
its rate from lr_find, fit_one_cycle for as many epochs as fit by a timing of its first steps. `auto` measures and
chooses by itself; of its choices, bfloat16 is one that fastai does not offer on a CPU. They take turns. Accuracies
are those of the weights that each keeps (ours: the best epoch's, fastai's: the last one's, and its best epoch's
beside it), without test-time augmentation. fastai is installed into an environment of its own on first use.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import environments
import report
from cifar10_folders import write_folders
from pictures import DATA
from pyserve import kernels
from pyserve.data.folder import ScanOptions, scan
from pyserve.jobs.worker.process import keep_freed_memory
from pyserve.spec import TrainSpec
from pyserve.training.auto import decide
from pyserve.training.callbacks import Silent
from pyserve.training.prepare import TrainDirs
from pyserve.training.recipe import train

MARKS = (2.0, 5.0, 12.0)  # minutes

Row = dict[str, Any]


def ours(folder: Path, network: str, minutes: float, seed: int) -> Row:
    """Recipe auto, from the files on."""
    begun = time.monotonic()
    manifest = scan("cifar10", folder, ScanOptions(), max_pixels=10**6, max_files=10**6)
    spec = TrainSpec(
        dataset="datasets/cifar10",
        architecture=network,
        recipe="auto",
        time_budget_minutes=minutes,
        tta=False,
        seed=seed,
        device="cpu",
    )
    with tempfile.TemporaryDirectory(prefix="pyserve-marks-") as name:
        dirs = TrainDirs(Path(name) / "job", Path(name) / "cache")
        elapsed_s = time.monotonic() - begun
        spec, epochs_s = decide(spec, manifest, dirs, Silent(), elapsed_s=elapsed_s, resume=False)
        outcome = train(spec, manifest, dirs, Silent(), time_budget_s=epochs_s)
    return {
        "ours %": 100 * outcome.metrics["accuracy"],
        "ours minutes": (time.monotonic() - begun) / 60,
        "ours epochs": outcome.epochs_run,
        "ours precision": spec.precision,
    }


def main() -> None:
    """Train both ways, mark by mark."""
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--mark", type=float, action="append", help="minutes; may be repeated; default: 2, 5, 12")
    parser.add_argument("--network", default="whitenednet", help="architecture, for small pictures")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    environments.enter("fastai", ("fastai==2.8.12",))
    from peers.fastai_cifar10 import trained as theirs

    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a training job does
    marks = [0.25] if options.quick else options.mark or MARKS
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyserve-cifar10-")))
        write_folders(DATA, folder, 2000 if options.quick else None)
        for seed in range(options.seeds):
            for mark in marks:
                case = (folder, options.network, mark, seed)
                row = {"minutes": mark, "seed": seed, **ours(*case), **theirs(*case)}
                rows.append(row)
                print(report.table([row]), flush=True)
    ahead = sum(row["ours %"] > row["fastai best epoch %"] for row in rows)
    fallbacks = sum(kernels.info().fallbacks.values())
    summary = (
        f"CIFAR-10, {options.network}, the same minutes: ours is ahead of fastai's best epoch in {ahead} of "
        f"{len(rows)} trainings; {fallbacks} operators fell back to ATen."
    )
    print(summary)
    report.write(options.json, "time_to_accuracy", rows, summary, ["torch", "fastai", "pillow"])


if __name__ == "__main__":
    main()
