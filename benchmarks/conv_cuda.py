"""conv2d on a GPU, layer by layer: ours against cuDNN through PyTorch, eager and compiled.

    python benchmarks/conv_cuda.py --networks resnet50 --batches 1 64 256 --json benchmarks/results/conv_cuda.json

Every layer of ResNet-50 and VGG-16 with its bias, residual and ReLU, the first one also with its max pooling.
Peers: the eager sequence (convolution, bias, addition, ReLU), `aten::cudnn_convolution_relu` and
`cudnn_convolution_add_relu` (one call, but neither eager nor compiled code ever makes it), and with --compile
torch.compile in its default and max-autotune modes; of gradients `aten::convolution_backward`. Channels-last,
cudnn.benchmark, CUDA graphs on all sides, cold buffers, medians.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cuda_timing
from cuda_timing import Function, channels_last, median_ms
from pyserve.kernels import conv2d
from pyserve.kernels.pooled import conv2d_pool

FORWARD, DX, DW = "forward", "dx", "dw"
POOL = (3, 2, 1)  # size, stride, padding


@dataclass(frozen=True)
class Layer:
    """A convolution of C → K channels with an R×R kernel on H×H pixels."""

    C: int
    H: int
    K: int
    R: int
    stride: int = 1
    residual: bool = False
    pooled: bool = False  # by 3×3 with stride 2, as prediction does it

    def has(self, direction: str) -> bool:
        """Whether anybody wants it: not the gradient of a picture, nor one through a pooled output."""
        return direction == FORWARD or not (self.pooled or (direction == DX and self.C == 3))

    @property
    def out(self) -> int:
        """P = Q: height and width of the output."""
        return (self.H + 2 * (self.R // 2) - self.R) // self.stride + 1

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        more = " + residual" if self.residual else " + max pooling" if self.pooled else ""
        return f"{self.R}×{self.R}{stride} {self.C}→{self.K} on {self.H}{more}"


def _bottlenecks(C: int, width: int, H: int, stride: int) -> list[Layer]:
    """The different layers of one stage of ResNet-50."""
    out, after = 4 * width, H // stride
    return [
        Layer(C, H, width, 1),
        Layer(width, H, width, 3, stride),
        Layer(width, after, out, 1, residual=True),
        Layer(C, H, out, 1, stride),
        Layer(out, after, width, 1),
        *([Layer(width, after, width, 3)] if stride > 1 else []),
    ]


NETWORKS: dict[str, list[Layer]] = {
    "resnet50": [
        Layer(3, 224, 64, 7, 2, pooled=True),
        Layer(3, 224, 64, 7, 2),
        *_bottlenecks(64, 64, 56, 1),
        *_bottlenecks(256, 128, 56, 2),
        *_bottlenecks(512, 256, 28, 2),
        *_bottlenecks(1024, 512, 14, 2),
    ],
    "vgg16": [
        *(Layer(C, H, K, 3) for C, H, K in ((3, 224, 64), (64, 224, 64), (64, 112, 128), (128, 112, 128))),
        *(Layer(C, H, K, 3) for C, H, K in ((128, 56, 256), (256, 56, 256), (256, 28, 512), (512, 28, 512))),
        Layer(512, 14, 512, 3),
    ],
}


@dataclass
class Buffers:
    """The tensors of a layer, as many sets as keep the cache cold."""

    x: list[Tensor]
    residual: list[Tensor | None]
    grad: list[Tensor]
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: Layer, N: int, dtype: torch.dtype, device: str) -> Buffers:
        """Random values; the number of sets depends on their size."""
        pixels_in, pixels_out = N * layer.C * layer.H**2, N * layer.K * layer.out**2
        sets = cuda_timing.sets_needed(2 * (pixels_in + 2 * pixels_out), device)
        out = (N, layer.K, layer.out, layer.out)
        like = {"dtype": dtype, "device": device}
        return cls(
            [channels_last(N, layer.C, layer.H, layer.H, **like) for _ in range(sets)],
            [channels_last(*out, **like) if layer.residual else None for _ in range(sets)],
            [channels_last(*out, **like) for _ in range(sets)],
            channels_last(layer.K, layer.C, layer.R, layer.R, **like),
            torch.randn(layer.K, device=device).to(dtype),
        )


def forward_functions(layer: Layer, b: Buffers, *, compiled: bool) -> dict[str, Function]:
    """Ours and the peers', called with the number of a set."""
    stride, padding = [layer.stride] * 2, [layer.R // 2] * 2

    def pooled(y: Tensor) -> Tensor:
        return F.max_pool2d(y, *POOL) if layer.pooled else y

    def sequence(x: Tensor, residual: Tensor | None) -> Tensor:
        y = F.conv2d(x, b.weight, b.bias, stride, padding)
        return pooled(F.relu(y if residual is None else y + residual))

    def ours(i: int) -> Tensor:
        numbers = (b.weight, b.bias, stride, padding)
        if layer.pooled:
            return conv2d_pool(b.x[i], *numbers, 1, 1, POOL, "relu")
        return conv2d(b.x[i], *numbers, residual=b.residual[i], activation="relu")

    def cudnn(i: int) -> Tensor:
        residual, numbers = b.residual[i], (b.bias, stride, padding, [1, 1], 1)
        if residual is None:
            return pooled(torch.ops.aten.cudnn_convolution_relu(b.x[i], b.weight, *numbers))
        return torch.ops.aten.cudnn_convolution_add_relu(b.x[i], b.weight, residual, 1.0, *numbers)

    functions: dict[str, Function] = {
        "ours": ours,
        "eager": lambda i: sequence(b.x[i], b.residual[i]),
        "cudnn": cudnn,
    }
    if compiled:
        for mode in ("default", "max-autotune-no-cudagraphs"):
            function = torch.compile(sequence, mode=mode)
            functions[mode] = lambda i, function=function: function(b.x[i], b.residual[i])  # type: ignore[misc]
    return functions


def gradient_functions(layer: Layer, b: Buffers, wanted: str) -> dict[str, Function]:
    """The gradient of x or of weight."""
    numbers = ([layer.stride] * 2, [layer.R // 2] * 2, [1, 1])
    mask = [wanted == DX, wanted == DW, False]
    none = (-math.inf, math.inf)
    ours, aten = torch.ops.pyserve.conv2d_backward, torch.ops.aten.convolution_backward
    return {
        "ours": lambda i: ours(b.grad[i], None, b.x[i], b.weight, *numbers, 1, *none, [*mask, False]),
        "eager": lambda i: aten(b.grad[i], b.x[i], b.weight, None, *numbers, False, [0, 0], 1, mask),
    }


def measure(
    layer: Layer, N: int, direction: str, dtype: torch.dtype, device: str, *, compiled: bool
) -> dict[str, Any] | None:
    """One row, or nothing where only we, or only the peers, can do it."""
    buffers = Buffers.of(layer, N, dtype, device)
    functions = (
        forward_functions(layer, buffers, compiled=compiled)
        if direction == FORWARD
        else gradient_functions(layer, buffers, direction)
    )
    times = median_ms(functions, len(buffers.x), device, rounds=3 if device == "cpu" else 15)
    ours = times.pop("ours", None)
    if ours is None or not times:
        return None
    tflop = 2e-12 * N * layer.out**2 * layer.K * layer.C * layer.R**2
    row: dict[str, Any] = {"case": f"{layer}, batch {N}, {direction}", "ours_ms": ours}
    row |= {f"{name}_ms": time for name, time in times.items()}
    row |= {"ours_tflops": tflop / ours * 1e3, "ratio_to_best": min(times.values()) / ours}
    print(
        f"{row['case']:58} {ours:8.4f} ms, best peer {min(times.values()):8.4f} ms, {row['ratio_to_best']:.2f} ×"
    )
    return row


def main() -> None:
    parser = cuda_timing.arguments("conv2d on a GPU against cuDNN")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64, 256])
    parser.add_argument("--directions", nargs="+", choices=(FORWARD, DX, DW), default=[FORWARD, DX, DW])
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile, which takes minutes")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    layers = list(dict.fromkeys(layer for name in options.networks for layer in NETWORKS[name]))
    ways = [(layer, way) for layer in layers for way in options.directions if layer.has(way)]
    cases = [(layer, N, way) for N in options.batches for layer, way in ways]
    rows = []
    for layer, N, direction in cases[:2] if options.quick else cases:
        dtype = getattr(torch, options.dtype)
        row = measure(layer, N, direction, dtype, options.device, compiled=options.compile)
        rows += [row] if row else []
    mean = math.exp(statistics.fmean(math.log(row["ratio_to_best"]) for row in rows)) if rows else math.nan
    summary = f"{options.dtype}: {mean:.2f} × the speed of the best peer (geometric mean, {len(rows)} cases)."
    cuda_timing.write(options.json, "conv_cuda", rows, summary, options.device)


if __name__ == "__main__":
    main()
