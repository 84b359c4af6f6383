"""Whole networks on a GPU: a training step, or a prediction, of ResNets, fused against eager and compiled.

    python benchmarks/networks_cuda.py --what train --batches 256 --json benchmarks/results/train_cuda.json
    python benchmarks/networks_cuda.py --what predict --batches 1 64 --json benchmarks/results/predict_cuda.json

bfloat16 (by autocast when training), channels-last, cudnn.benchmark, a CUDA graph of the whole step on all sides.
"""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import cuda_timing
from cuda_timing import Function, channels_last, median_ms
from pyserve.kernels import fuse
from pyserve.models import create_model

ARCHITECTURES = ("resnet18", "resnet50")


def training_step(model: nn.Module, N: int, size: int, device: str) -> Function:
    """Forward, backward and update, on one batch."""
    model.to(device, memory_format=torch.channels_last).train()
    pictures = channels_last(N, 3, size, size, dtype=torch.float32, device=device)
    labels = torch.randint(1000, (N,), device=device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)

    def step(_: int) -> None:
        optimiser.zero_grad(set_to_none=False)
        # Weights are cast anew in every step: a graph cannot hold on to the copies that autocast would keep.
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        optimiser.step()

    return step


def prediction(model: nn.Module, N: int, size: int, device: str) -> Function:
    """The scores of a batch, in turns of a few batches."""
    model.to(device, torch.bfloat16, memory_format=torch.channels_last).eval()
    batches = [channels_last(N, 3, size, size, dtype=torch.bfloat16, device=device) for _ in range(4)]

    def predict(i: int) -> None:
        with torch.no_grad():
            model(batches[i % len(batches)])

    return predict


def measure(what: str, architecture: str, N: int, device: str, *, size: int, compiled: bool) -> dict[str, Any]:
    """One row."""
    make = training_step if what == "train" else prediction
    plain = create_model(architecture, 1000)
    networks: dict[str, nn.Module] = {
        "ours": fuse(copy.deepcopy(plain), inference=what == "predict"),
        "eager": plain,
    }
    if compiled:
        networks["compiled"] = torch.compile(copy.deepcopy(plain))  # type: ignore[assignment]
    functions = {name: make(network, N, size, device) for name, network in networks.items()}
    times = median_ms(functions, 1 if what == "train" else 4, device, rounds=2 if device == "cpu" else 15)
    ours = times.pop("ours")
    row: dict[str, Any] = {"case": f"{what} {architecture}, batch {N}", "ours_ms": ours}
    row |= {f"{name}_ms": time for name, time in times.items()}
    row |= {"pictures_per_s": N / ours * 1e3, "ratio_to_best": min(times.values()) / ours}
    print(
        f"{row['case']:32} {ours:8.3f} ms, best peer {min(times.values()):8.3f} ms, {row['ratio_to_best']:.2f} ×"
    )
    return row


def main() -> None:
    parser = cuda_timing.arguments("training steps and predictions of whole networks on a GPU")
    parser.add_argument("--what", choices=("train", "predict"), required=True)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--size", type=int, default=224, help="height and width of the pictures")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile, which takes minutes")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    cases = [(name, N) for name in options.architectures for N in options.batches]
    rows = [
        measure(options.what, name, N, options.device, size=options.size, compiled=options.compile)
        for name, N in (cases[:1] if options.quick else cases)
    ]
    mean = math.exp(statistics.fmean(math.log(row["ratio_to_best"]) for row in rows))
    summary = f"{options.what}: {mean:.2f} × the speed of the best peer (geometric mean, {len(rows)} cases)."
    cuda_timing.write(options.json, f"{options.what}_cuda", rows, summary, options.device)


if __name__ == "__main__":
    main()
