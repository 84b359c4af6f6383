"""pyserve trains, tunes and serves image classifiers over gRPC, on convolution kernels of its own.

Importing the package loads nothing heavy: `pyserve.client` never imports torch, `pyserve.kernels` does.
"""

from __future__ import annotations

__version__ = "0.1.0"
