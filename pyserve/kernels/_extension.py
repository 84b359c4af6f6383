"""Loads the compiled part: `_C` and the operator libraries that belong to this torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

__all__ = ["CUDA_LOADED", "C", "logger"]

logger = logging.getLogger("pyserve.kernels")

_PACKAGE = Path(__file__).resolve().parent.parent
_BUILD_COMMAND = "pip install --no-build-isolation --no-deps -e .   (or: python setup.py build_ext --inplace)"

_ops: Any = torch.ops  # whose functions have no types

try:
    from pyserve import _C as C

    _ops.load_library(str(_PACKAGE / "libpyserve_cpu.so"))
except (ImportError, OSError) as error:
    raise ImportError(f"pyserve's extension is not built ({error}); build it with: {_BUILD_COMMAND}") from error


def _load_cuda() -> bool:
    """Load the CUDA operators where this torch can run them; elsewhere CUDA tensors go to ATen, counted."""
    library = _PACKAGE / "libpyserve_cuda.so"
    if torch.version.cuda is None or not library.is_file():
        return False
    _ops.load_library(str(library))
    return True


CUDA_LOADED = _load_cuda()
