"""Runs every CUDA variant on small problems, and nothing else on the GPU: what compute-sanitizer watches.

python -m tests.kernels.every_cuda_variant
"""

from __future__ import annotations

import sys

import torch

from pyserve.kernels import batch_norm_relu, conv2d, info
from pyserve.kernels._extension import C
from pyserve.kernels.pooled import conv2d_pool
from pyserve.kernels.statistics import conv2d_statistics
from tests.kernels.cases import square
from tests.kernels.reference import Tensors
from tests.kernels.support import DTYPES, NO_ACTIVATION, covered_dtypes, numbers, variants

CASES = [
    square(1, 16, 9, 33, 3, 1, 1),
    square(2, 5, 7, 6, 3, 2, 1),
    square(1, 64, 6, 72, 1),
    square(1, 8, 9, 8, 3, 1, 1, groups=8),
]


def convolve(op: str, t: Tensors) -> None:
    """One of the convolution's operators."""
    if op == "conv2d":
        torch.ops.pyserve.conv2d(t.x, t.weight, t.bias, t.residual, *numbers(t.case), 0.0, 6.0)
        return
    wanted = [op == "conv2d_dgrad", op == "conv2d_wgrad", False, False]
    torch.ops.pyserve.conv2d_backward(t.grad, None, t.x, t.weight, *numbers(t.case), *NO_ACTIVATION, wanted)


def main() -> None:
    """Exits with an error where a variant did not run."""
    for op in ("conv2d", "conv2d_dgrad", "conv2d_wgrad"):
        for variant in variants(op, "cuda"):
            C.prefer_variant(variant.name)
            for case in CASES:
                for dtype in covered_dtypes(variant, case):
                    convolve(op, Tensors.random(case, dtype, post_relu=False, device="cuda"))
    C.prefer_variant("")
    for dtype in DTYPES:
        for sizes in ((3, 7, 1, 9), (300, 33)):
            x = torch.randn(sizes).to(dtype).cuda()
            y = torch.ops.pyserve.bias_relu(x, torch.randn(sizes[1]).to(dtype).cuda(), x, 0.0, 6.0)
            torch.ops.pyserve.bias_relu_backward(x, y, 0.0, 6.0, True)
        x = torch.randn(3, 24, 9, 9).to(dtype).cuda().requires_grad_()
        batch_norm_relu(x, None, None, training=True, residual=x.detach()).sum().backward()
        batch_norm_relu(x.repeat(80, 1, 1, 1), None, None, training=True).sum().backward()
        weight = torch.randn(40, 24, 3, 3).to(dtype).cuda().requires_grad_()
        conv2d_statistics(x, weight, None, 1, 1, 1, 1)[0].sum().backward()
        bias = torch.randn(40).to(dtype).cuda().requires_grad_()
        conv2d(x, weight, bias, padding=1, activation="relu").sum().backward()
        pictures, stem = torch.randn(2, 3, 37, 41).to(dtype).cuda(), torch.randn(40, 3, 7, 7).to(dtype).cuda()
        conv2d_pool(pictures, stem, bias.detach(), 2, 3, 1, 1, (3, 2, 1), "relu")
    torch.cuda.synchronize()
    idle = [
        variant.name
        for variant in info().variants
        if variant.available and variant.device == "cuda" and not variant.calls
    ]
    if idle:
        sys.exit(f"did not run: {idle}")


if __name__ == "__main__":
    main()
