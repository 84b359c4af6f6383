"""The project's own convolution kernels as PyTorch operators: `torch.ops.pyserve.*` and their Python face.

from pyserve.kernels import conv2d, bias_relu, batch_norm_relu, fuse, info
"""

from __future__ import annotations

import os
from pathlib import Path

from pyserve.kernels import _extension as _extension  # loads the operators; ImportError says how to build them
from pyserve.kernels.batch_norm import batch_norm_relu
from pyserve.kernels.calls import Activation
from pyserve.kernels.choices import TABLE_VARIABLE, use_table
from pyserve.kernels.fuse import FusedModel, fuse
from pyserve.kernels.info import ChoiceInfo, KernelInfo, VariantInfo, WorkspaceInfo, info, release_workspace
from pyserve.kernels.layers import AddReLU, BatchNorm2d, Conv2d, ConvBNReLU
from pyserve.kernels.ops import bias_relu, conv2d

__all__ = [
    "Activation",
    "AddReLU",
    "BatchNorm2d",
    "ChoiceInfo",
    "Conv2d",
    "ConvBNReLU",
    "FusedModel",
    "KernelInfo",
    "VariantInfo",
    "WorkspaceInfo",
    "batch_norm_relu",
    "bias_relu",
    "conv2d",
    "fuse",
    "info",
    "release_workspace",
    "use_table",
]

if os.environ.get(TABLE_VARIABLE):
    use_table(Path(os.environ[TABLE_VARIABLE]), TABLE_VARIABLE)
