"""Single convolutions on the CPU, forward and gradients: ours against oneDNN, which is what PyTorch runs.

    python benchmarks/conv_cpu.py --threads 1 --json benchmarks/results/conv_cpu.json
    python benchmarks/conv_cpu.py --threads 1 --isa avx2 --json benchmarks/results/conv_cpu_avx2.json

Forward as in prediction: on both sides weights are packed once, bias, residual and activation fused; NHWC.
Gradients against `aten::convolution_backward`. Single calls in turns, caches cold; the process keeps freed memory,
else large outputs measure how fast the system zeroes pages. With --isa oneDNN and ATen are capped as we are.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from cpu_timing import Function, cold_median_ms, geometric_mean, row
from torch import Tensor, nn

import report
from pyserve.jobs.worker.process import keep_freed_memory
from pyserve.kernels import fuse
from pyserve.kernels._extension import C

LAST = torch.channels_last


@dataclass(frozen=True)
class Layer:
    """A convolution of square pictures; groups are 1 or, depthwise, as many as channels."""

    channels: int
    size: int
    filters: int
    kernel: int = 3
    stride: int = 1
    residual: bool = False
    depthwise: bool = False

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}×{self.kernel}{stride}, {self.channels}→{self.filters}, {self.size}"

    @property
    def groups(self) -> int:
        return self.channels if self.depthwise else 1


def square(channels: int, size: int, filters: int | None = None) -> Layer:
    return Layer(channels, size, filters or channels)


GROUPS: dict[str, list[Layer]] = {
    "3×3": [
        *[square(64, 56), square(128, 28), square(256, 14), square(512, 7)],  # ResNet
        *[square(64, 224), square(64, 112, 128), square(128, 112), square(128, 56, 256)],  # VGG
        *[square(256, 56), square(256, 28, 512), square(512, 28), square(512, 14), square(3, 224, 64)],
    ],
    "1×1 with residual": [
        Layer(c, s, 4 * c, 1, residual=True) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))
    ],
    "3×3 stride 2": [Layer(c, s, 2 * c, stride=2) for c, s in ((64, 56), (128, 28), (256, 14))],
    "stem": [Layer(3, 224, 64, 7, 2)],
    "other first layers": [Layer(3, 224, 32, stride=2), Layer(3, 32, 16)],  # of MobileNetV2, of CIFAR's ResNets
    "depthwise": [
        Layer(c, s, c, stride=stride, depthwise=True)
        for c, s, stride in ((32, 112, 1), (96, 112, 2), (144, 56, 1), (192, 28, 1), (384, 14, 1), (960, 7, 1))
    ],
}


class Plain(nn.Module):
    """A layer as `fuse` takes it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        numbers = (layer.kernel, layer.stride, layer.kernel // 2)
        self.conv = nn.Conv2d(layer.channels, layer.filters, *numbers, groups=layer.groups)
        self.activation = nn.ReLU6() if layer.depthwise else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Activated."""
        return self.activation(self.conv(x))  # type: ignore[no-any-return]


class WithResidual(Plain):
    """Likewise, of two inputs."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """The sum, activated."""
        return self.activation(self.conv(x) + residual)  # type: ignore[no-any-return]


def forward_functions(layer: Layer, N: int) -> dict[str, Function]:
    """Ours and oneDNN, after their outputs have been compared."""
    module = (WithResidual if layer.residual else Plain)(layer).eval()
    x = torch.randn(N, layer.channels, layer.size, layer.size).contiguous(memory_format=LAST)
    expected = module.conv(x)
    residual = torch.randn_like(expected) if layer.residual else None
    inputs = (x,) if residual is None else (x, residual)
    fused, onednn = fuse(module, inference=True), _onednn(layer, module.conv, *inputs)
    torch.testing.assert_close(fused(*inputs), module(*inputs), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(onednn(), module(*inputs), atol=1e-3, rtol=1e-3)
    return {"ours": lambda: fused(*inputs), "oneDNN": onednn}


def _onednn(layer: Layer, conv: nn.Conv2d, x: Tensor, residual: Tensor | None = None) -> Any:
    """With packed weights and the activation fused: what the frozen compiled graph calls."""
    ops: Any = torch.ops.mkldnn
    numbers = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    packed = ops._reorder_convolution_weight(conv.weight.detach(), *numbers, list(x.shape))
    bias = conv.bias
    if residual is not None:
        fused = ("add", 1.0, "relu", [], "")
        return lambda: ops._convolution_pointwise.binary(x, residual, packed, bias, *numbers, *fused)
    activation: tuple[Any, ...] = ("hardtanh", [0.0, 6.0], "") if layer.depthwise else ("relu", [], "")
    return lambda: ops._convolution_pointwise(x, packed, bias, *numbers, *activation)


def gradient_functions(layer: Layer, N: int, wanted: str) -> dict[str, Function]:
    """Ours and PyTorch's gradient of the input (dx) or of the weight (dw)."""
    x = torch.randn(N, layer.channels, layer.size, layer.size).contiguous(memory_format=LAST)
    weight = torch.randn(layer.filters, layer.channels // layer.groups, layer.kernel, layer.kernel)
    numbers = ([layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1])
    grad = torch.randn_like(torch.conv2d(x, weight, None, *numbers, layer.groups))
    mask = [wanted == "dx", wanted == "dw", False]
    aten: Any = torch.ops.aten.convolution_backward
    ours: Any = torch.ops.pyserve.conv2d_backward
    return {
        "ours": lambda: ours(grad, None, x, weight, *numbers, layer.groups, -math.inf, math.inf, [*mask, False]),
        "oneDNN": lambda: aten(grad, x, weight, None, *numbers, False, [0, 0], layer.groups, mask),
    }


def cap(isa: str) -> None:
    """Start again with every library held to an ISA: they read these on loading."""
    names = {"avx2": ("avx2", "AVX2"), "avx512": ("avx512", "AVX512_CORE")}
    variables = dict(zip(("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"), names[isa], strict=True))
    variables["PYSERVE_CPU_ISA"] = isa
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.environ.update(variables)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606


def main() -> None:
    parser = report.arguments("single convolutions on the CPU")
    parser.add_argument("--isa", choices=("avx2", "avx512"), help="cap all at this ISA")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--directions", nargs="+", choices=("forward", "dx", "dw"), default=["forward", "dx", "dw"]
    )
    options = parser.parse_args()
    if options.isa:
        cap(options.isa)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    rows, summary = [], []
    for group in options.groups:
        for direction in options.directions:
            found = []
            # Nobody wants the gradient of pictures.
            layers = [layer for layer in GROUPS[group] if direction != "dx" or layer.channels > 3]
            for layer in layers[:1] if options.quick else layers:
                for N in options.batches:
                    functions = (
                        forward_functions(layer, N)
                        if direction == "forward"
                        else gradient_functions(layer, N, direction)
                    )
                    with torch.no_grad():
                        times = cold_median_ms(functions, 5 if options.quick else 25)
                    found.append(row(f"{layer}, batch {N}", times, direction=direction, group=group))
                    told = ", ".join(f"{k} {v:.3f}" for k, v in found[-1].items() if isinstance(v, float))
                    print(f"{found[-1]['case']:28} {direction:8} {told}", flush=True)
            if not found:
                continue
            ratios = [r["ratio to best"] for r in found]
            summary.append(f"{group}, {direction}: {geometric_mean(ratios):.2f} (least {min(ratios):.2f})")
            rows += found
    facts = f"float32, {options.threads} threads, {C.isa_in_use()}, oneDNN's time ÷ ours, geometric means: "
    print(facts + "; ".join(summary))
    report.write(options.json, "conv_cpu", rows, facts + "; ".join(summary) + ".", ["torch"])


if __name__ == "__main__":
    main()
