"""Everything random is a function of (seed, step): what makes a resumed training end with the same weights."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import torch

_MASK = (1 << 64) - 1


def derive_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed (splitmix64's finaliser, Steele et al. 2014, after each part)."""
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_step(seed: int, step: int, part: int = 0) -> None:
    """Seed torch's generators (dropout and the like) for one batch of one step; costs no wait for the device."""
    torch.manual_seed(derive_seed(seed, step, part))


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Python's, numpy's and torch's generators (CPU and every GPU) end as they began, whatever happens."""
    import numpy as np

    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Ask torch for operators whose result does not depend on timing, and put its switches back afterwards.

    On a CPU all that we use are (the number of threads must stay the same). On a GPU cuBLAS reads its workspace
    setting when its first handle is made: set here unless the user did. Operators that have no such form warn.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
