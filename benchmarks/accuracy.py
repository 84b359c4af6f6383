"""Accuracy on real pictures, each case through the server as a remote client would do it.

    python benchmarks/accuracy.py --case cats-dogs-transfer --json benchmarks/results/accuracy_transfer.json

Needs the pictures and weights in the folder that PYSERVE_TEST_DATA names. Every case trains what its row says,
then reads the validation accuracy from the job and counts it again from the confusion matrix.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def trained(client: Client, name: str, **spec: Any) -> Row:
    """Train, and count the accuracy again from the confusion matrix."""
    started = time.monotonic()
    job = client.wait(client.train(dataset=f"datasets/{name}", **spec).name)
    if not job.train_result.model:
        raise SystemExit(f"{name}: the job ended without a model: {job.reason}")
    matrix = client.confusion_matrix(job.train_result.model)
    assert abs(matrix.accuracy - job.train_result.metrics["accuracy"]) < 2e-3
    return {
        "network": spec["architecture"],
        "accuracy_percent": round(100 * matrix.accuracy, 2),
        "pictures": sum(matrix.counts),
        "epochs": job.train_result.epochs_run,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def cats_dogs_transfer(quick: bool, threads: int) -> Row:
    """MobileNetV2 with ImageNet weights, head first, then discriminative rates."""
    with server(DATA, threads=threads) as client:
        client.register_dataset(str(DATA / "cats-dogs"), "cats-dogs")
        return trained(
            client,
            "cats-dogs",
            architecture="mobilenet_v2",
            weights=MOBILENET,
            image_size=128 if quick else 224,
            batch_size=32,
            frozen_epochs=1,
            epochs=1 if quick else 4,
            learning_rate=1e-3,
            body_lr_factor=0.01,
        )


def cats_dogs_scratch(quick: bool, threads: int) -> Row:
    """ResNet-18 from random weights, as far as ten minutes bring it."""
    with server(DATA, threads=threads) as client:
        client.register_dataset(str(DATA / "cats-dogs"), "cats-dogs")
        return trained(
            client,
            "cats-dogs",
            architecture="resnet18",
            image_size=112,
            batch_size=32,
            epochs=1 if quick else 12,
            learning_rate=2e-3,
            weight_decay=0.05,
        )


def cifar10(quick: bool, threads: int) -> Row:
    """The small network of our own from random weights."""
    with tempfile.TemporaryDirectory(prefix="pyserve-cifar10-") as folder:
        script = Path(__file__).parent / "cifar10_folders.py"
        subprocess.run([sys.executable, script, folder], check=True)
        with server(Path(folder), threads=threads) as client:
            client.register_dataset(folder, "cifar10")
            return trained(
                client,
                "cifar10",
                architecture="smallnet",
                image_size=32,
                batch_size=128,
                epochs=1 if quick else 12,
                learning_rate=0.01,
                augment="crop",
                label_smoothing=0.1,
            )


CASES: dict[str, Callable[[bool, int], Row]] = {
    "cats-dogs-transfer": cats_dogs_transfer,
    "cats-dogs-scratch": cats_dogs_scratch,
    "cifar10": cifar10,
}


def main() -> None:
    """Run the cases that are asked for."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one (may be repeated)")
    options = parser.parse_args()
    rows = []
    for name in options.case or CASES:
        rows.append({"case": name, **CASES[name](options.quick, options.threads)})
        print(report.table(rows[-1:]), flush=True)
    best = ", ".join(f"{row['case']} {row['accuracy_percent']} %" for row in rows)
    report.write(
        options.json, "accuracy", rows, f"Validation accuracy: {best}.", ["torch", "torchvision", "pyserve"]
    )


if __name__ == "__main__":
    main()
