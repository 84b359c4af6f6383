"""Fixtures of the kernel tests: a forced variant, poisoned memory. They need torch and pytest only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from pyserve.kernels import VariantInfo, info
from pyserve.kernels._extension import C
from tests.kernels.support import NEEDS_GPU


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that our operators run on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(NEEDS_GPU)
    return str(request.param)


@pytest.fixture
def use_variant() -> Iterator[Callable[[VariantInfo], None]]:
    """Take this variant wherever it covers the problem; skips where this machine cannot run it."""
    isa = C.isa_in_use()

    def use(variant: VariantInfo) -> None:
        if variant.device == "cuda" and not torch.cuda.is_available():
            pytest.skip(NEEDS_GPU)
        if variant.device == "cpu":
            if variant.needs not in C.isa_names():
                pytest.skip(f"needs {variant.needs}")
            C.set_isa(variant.needs)
        C.prefer_variant(variant.name)

    yield use
    C.prefer_variant("")
    C.set_isa(isa)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory, outputs and scratch alike, starts as NaN: what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    C.poison_workspace(True)
    yield
    C.poison_workspace(False)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def calls() -> Callable[[str], int]:
    """Calls of a variant so far."""

    def count(name: str) -> int:
        return {variant.name: variant.calls for variant in info().variants}[name]

    return count


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """float32 is float32 on a GPU too, in PyTorch's convolutions and in ours; tests of TF32 ask for it."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before
