"""Accuracy on real pictures, each case through the server as a remote client would do it.

    python benchmarks/accuracy.py --case cats-dogs-transfer --seeds 3 --json benchmarks/results/accuracy.json

Needs the pictures and weights in the folder that PYSERVE_TEST_DATA names. Every case trains what its row says,
once for each seed, reads the validation accuracy from the job, and counts it again from the confusion matrix.
Minutes are those of one training, from the call to its model, decoding and test-time augmentation included.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
from pyserve.client import Client

Row = dict[str, Any]
DATA = Path(os.environ.get("PYSERVE_TEST_DATA") or report.ROOT.parent / "shared" / "data").resolve()
MOBILENET = "mobilenet_v2_imagenet1k_from_coral_ptq.pth"


@contextmanager
def server(*dataset_roots: Path, threads: int) -> Iterator[Client]:
    """A server of its own on a free port with an empty data folder, and a client connected to it."""
    with tempfile.TemporaryDirectory(prefix="pyserve-accuracy-") as folder:
        roots = "[" + ", ".join(f'"{root}"' for root in dataset_roots) + "]"
        environment = {
            **os.environ,
            "PYSERVE_DATASET_ROOTS": roots,
            "PYSERVE_WEIGHTS_ROOTS": f'["{DATA / "weights"}"]',
            "PYSERVE_JOB_THREADS": str(threads),
        }
        command = [
            sys.executable,
            "-m",
            "pyserve",
            "serve",
            "--port",
            "0",
            "--data-dir",
            folder,
            "--log-level",
            "warning",
        ]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            with Client(address) as client:
                yield client
        finally:
            process.terminate()
            process.wait(timeout=60)


def trained(client: Client, name: str, seeds: int, **spec: Any) -> Row:
    """Train with each seed, and count the accuracies again from the confusion matrices."""
    plain, with_tta, minutes = [], [], []
    for seed in range(seeds):
        started = time.monotonic()
        job = client.wait(client.train(dataset=f"datasets/{name}", seed=seed, tta=True, **spec).name)
        minutes.append((time.monotonic() - started) / 60)
        if not job.train_result.model:
            raise SystemExit(f"{name}: the job ended without a model: {job.reason}")
        matrix = client.confusion_matrix(job.train_result.model)
        assert abs(matrix.accuracy - job.train_result.metrics["accuracy"]) < 2e-3
        plain.append(100 * matrix.accuracy)
        with_tta.append(100 * job.train_result.metrics["tta_accuracy"])
        print(f"{name}, seed {seed}: {plain[-1]:.2f} %, with TTA {with_tta[-1]:.2f} %", flush=True)
    return {
        "network": spec["architecture"],
        "validation pictures": sum(matrix.counts),
        "epochs": job.train_result.epochs_run,
        "minutes": f"{statistics.median(minutes):.1f}",
        "seeds": seeds,
        "accuracy": percent(plain),
        "with TTA": percent(with_tta),
    }


def percent(values: list[float]) -> str:
    """Mean, and where there are several the lowest and the highest."""
    mean = f"{statistics.mean(values):.2f} %"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def transfer(name: str, quick: bool, threads: int, seeds: int) -> Row:
    """MobileNetV2 with ImageNet weights, head first, then discriminative rates."""
    with server(DATA, threads=threads) as client:
        client.register_dataset(str(DATA / name), name)
        return trained(
            client,
            name,
            seeds,
            architecture="mobilenet_v2",
            weights=MOBILENET,
            image_size=128 if quick else 224,
            batch_size=32,
            frozen_epochs=1,
            epochs=1 if quick else 4,
            learning_rate=1e-3,
            body_lr_factor=0.01,
        )


def cats_dogs_scratch(quick: bool, threads: int, seeds: int) -> Row:
    """ResNet-18 from random weights, as far as ten minutes bring it."""
    with server(DATA, threads=threads) as client:
        client.register_dataset(str(DATA / "cats-dogs"), "cats-dogs")
        return trained(
            client,
            "cats-dogs",
            seeds,
            architecture="resnet18",
            image_size=112,
            batch_size=32,
            epochs=1 if quick else 20,
            learning_rate=2e-3,
            weight_decay=0.05,
        )


def cifar10(epochs: int, quick: bool, threads: int, seeds: int) -> Row:
    """The network of our own that was made for such pictures, with its defaults, in mixed precision."""
    with tempfile.TemporaryDirectory(prefix="pyserve-cifar10-") as folder:
        script = Path(__file__).parent / "cifar10_folders.py"
        subprocess.run([sys.executable, script, folder], check=True)
        with server(Path(folder), threads=threads) as client:
            client.register_dataset(folder, "cifar10")
            return trained(
                client,
                "cifar10",
                seeds,
                architecture="whitenednet",
                precision="bfloat16",
                epochs=1 if quick else epochs,
            )


CASES: dict[str, Callable[[bool, int, int], Row]] = {
    "cats-dogs-transfer": partial(transfer, "cats-dogs"),
    "cats-dogs-oxford-transfer": partial(transfer, "cats-dogs-oxford"),
    "cats-dogs-scratch": cats_dogs_scratch,
    "cifar10": partial(cifar10, 12),
    "cifar10-longer": partial(cifar10, 24),
}


def main() -> None:
    """Run the cases that are asked for."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one (may be repeated)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each case, with seeds 0, 1, …")
    options = parser.parse_args()
    rows = []
    for name in options.case or CASES:
        row = CASES[name](options.quick, options.threads, options.seeds)
        rows.append({"case": name, **row, "commit": report.commit()})
        print(report.table(rows[-1:]), flush=True)
    rows += others(options.json, {row["case"] for row in rows})
    best = ", ".join(f"{row['case']} {row['accuracy']}" for row in rows)
    report.write(
        options.json, "accuracy", rows, f"Validation accuracy: {best}.", ["torch", "torchvision", "pyserve"]
    )


def others(path: Path | None, measured: set[str]) -> list[Row]:
    """The file's rows of cases that were not measured this time: all of them together take an hour."""
    if path is None or not path.exists():
        return []
    return [row for row in json.loads(path.read_text())["rows"] if row["case"] not in measured]


if __name__ == "__main__":
    main()
