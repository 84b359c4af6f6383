"""How much memory there is, how much is taken, and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import torch

from pyserve import kernels
from pyserve.inference.machine import container_limit_bytes, machine_bytes

_LIBC = ctypes.CDLL(None)


def total_bytes(device: torch.device) -> int:
    """Memory of the device: the GPU's, or the machine's as far as this process may use it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return container_limit_bytes() or machine_bytes()


def used_bytes(device: torch.device) -> int:
    """What this process holds of it: allocated on the GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Return to the system what nobody uses: allocators keep what was freed, for the next who asks."""
    gc.collect()
    kernels.release_workspace()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if hasattr(_LIBC, "malloc_trim"):  # glibc
        _LIBC.malloc_trim(0)
