"""The project's own convolution kernels as PyTorch operators: `torch.ops.pyserve.*` and their Python face.

from pyserve.kernels import conv2d, bias_relu, info
"""

from __future__ import annotations

from pyserve.kernels import _extension as _extension  # loads the operators; ImportError says how to build them
from pyserve.kernels.info import KernelInfo, VariantInfo, info
from pyserve.kernels.ops import Activation, bias_relu, conv2d

__all__ = ["Activation", "KernelInfo", "VariantInfo", "bias_relu", "conv2d", "info"]
