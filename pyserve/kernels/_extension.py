"""Loads the compiled part: `_C` and the operator libraries that belong to this torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("pyserve.kernels")

_PACKAGE = Path(__file__).resolve().parent.parent
_BUILD_COMMAND = "pip install --no-build-isolation --no-deps -e .   (or: python setup.py build_ext --inplace)"

try:
    from pyserve import _C
except ImportError as error:
    raise ImportError(f"pyserve's extension is not built ({error}); build it with: {_BUILD_COMMAND}") from error

C: Any = _C  # the pybind11 module has no type stubs


def _load() -> bool:
    """Load the operators; True where the CUDA ones are among them."""
    torch.ops.load_library(str(_PACKAGE / "libpyserve_cpu.so"))
    cuda = _PACKAGE / "libpyserve_cuda.so"
    if torch.version.cuda is None or not cuda.is_file():
        return False
    torch.ops.load_library(str(cuda))
    return True


CUDA_LOADED = _load()
