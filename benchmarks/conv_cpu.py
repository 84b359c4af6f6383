"""conv2d and its gradients on the CPU: every variant this machine has, against PyTorch's own (oneDNN).

    python benchmarks/conv_cpu.py --threads 1 --json benchmarks/results/conv_cpu.json

Ours and PyTorch's alternate in one process, in blocks with a pause in between (a rival's threads go on spinning
for a while and would slow the next one down); each figure is the median over the blocks. Channels-last tensors,
caches as the block before left them. The best ISA's variants are compared; with --all the capped ones too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import report
from pyserve.kernels import conv2d
from pyserve.kernels._extension import C

# name: images, channels, size, filters, kernel, stride, padding, groups
LAYERS: dict[str, tuple[int, int, int, int, int, int, int, int]] = {
    "stem 7×7/2, 3→64, 224": (2, 3, 224, 64, 7, 2, 3, 1),
    "3×3, 64→64, 56": (2, 64, 56, 64, 3, 1, 1, 1),
    "3×3, 128→128, 28": (4, 128, 28, 128, 3, 1, 1, 1),
    "3×3, 256→256, 14": (8, 256, 14, 256, 3, 1, 1, 1),
    "3×3, 512→512, 7": (8, 512, 7, 512, 3, 1, 1, 1),
    "3×3/2, 64→128, 56": (4, 64, 56, 128, 3, 2, 1, 1),
    "1×1, 64→256, 56": (2, 64, 56, 256, 1, 1, 0, 1),
    "1×1, 1024→256, 14": (8, 1024, 14, 256, 1, 1, 0, 1),
    "3×3, 16→16, 32 (CIFAR)": (32, 16, 32, 16, 3, 1, 1, 1),
    "3×3 depthwise, 96, 56": (4, 96, 56, 96, 3, 1, 1, 96),
}
QUICK = ("3×3, 64→64, 56", "3×3, 16→16, 32 (CIFAR)")
DIRECTIONS = ("forward", "dx", "dw")
Function = Callable[[], object]


def functions(layer: str, dtype: torch.dtype) -> dict[str, tuple[Function, Function]]:
    """Per direction, ours and PyTorch's."""
    N, channels, size, K, R, stride, padding, groups = LAYERS[layer]
    last = torch.channels_last
    x = torch.randn(N, channels, size, size).to(dtype).contiguous(memory_format=last)
    weight = torch.randn(K, channels // groups, R, R).to(dtype).contiguous(memory_format=last)
    numbers = ([stride] * 2, [padding] * 2, [1, 1])
    grad = torch.randn_like(F.conv2d(x, weight, None, *numbers, groups))

    def backward(wanted: str) -> tuple[Function, Function]:
        mask = [wanted == "dx", wanted == "dw", False]
        aten, ours = torch.ops.aten.convolution_backward, torch.ops.pyserve.conv2d_backward
        return (
            lambda: ours(grad, None, x, weight, *numbers, groups, -math.inf, math.inf, [*mask, False]),
            lambda: aten(grad, x, weight, None, *numbers, False, [0, 0], groups, mask),
        )

    forward = (
        lambda: conv2d(x, weight, None, *numbers, groups),
        lambda: F.conv2d(x, weight, None, *numbers, groups),
    )
    return {"forward": forward, "dx": backward("dx"), "dw": backward("dw")}


def median_ms(both: tuple[Function, Function], blocks: int, block_s: float) -> list[float]:
    """Milliseconds a call, ours and PyTorch's."""
    times: list[list[float]] = [[], []]
    for _ in range(blocks):
        for function, found in zip(both, times, strict=True):
            time.sleep(0.01)
            function()
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < block_s:
                function()
                calls += 1
            found.append((time.perf_counter() - start) / calls * 1e3)
    return [statistics.median(found) for found in times]


def gflop(layer: str) -> float:
    """Additions and multiplications of one direction, in thousands of millions."""
    N, channels, size, K, R, stride, padding, groups = LAYERS[layer]
    out = (size + 2 * padding - R) // stride + 1
    return 2e-9 * N * out * out * K * channels // groups * R * R


def measure(layer: str, dtype: torch.dtype, *, quick: bool) -> list[dict[str, Any]]:
    """One row a direction."""
    rows = []
    for direction, both in functions(layer, dtype).items():
        ours, torchs = median_ms(both, 3 if quick else 7, 0.02 if quick else 0.08)
        rows.append(
            {
                "case": f"{layer}, {direction}",
                "dtype": str(dtype).removeprefix("torch."),
                "isa": C.isa_in_use(),
                "ours_ms": ours,
                "torch_ms": torchs,
                "ours_gflops": gflop(layer) / ours * 1e3,
                "ratio_to_best": torchs / ours,
            }
        )
        times = f"{ours:8.3f} ms, torch {torchs:8.3f} ms, {torchs / ours:.2f} ×"
        print(f"{rows[-1]['case']:42} {C.isa_in_use():8} {times}")
    return rows


def main() -> None:
    parser = report.arguments("conv2d on the CPU against PyTorch's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--all", action="store_true", help="every ISA that this machine has, not only the best")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for isa in C.isa_names() if options.all else [C.isa_in_use()]:
        C.set_isa(isa)
        for layer in QUICK if options.quick else LAYERS:
            rows += measure(layer, getattr(torch, options.dtype), quick=options.quick)
    mean = math.exp(statistics.fmean(math.log(row["ratio_to_best"]) for row in rows))
    told = f"{mean:.2f} × PyTorch's speed (geometric mean, {len(rows)} cases)"
    summary = f"{options.dtype}, {options.threads} threads: {told}."
    print(summary)
    report.write(options.json, "conv_cpu", rows, summary, ["torch"])


if __name__ == "__main__":
    main()
