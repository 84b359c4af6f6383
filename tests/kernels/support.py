"""Which variants there are and what they take, for parametrised tests."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyserve.kernels import VariantInfo, info
from pyserve.kernels._extension import C
from tests.kernels.cases import Case, Window

NEEDS_GPU = "needs a CUDA GPU"
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)  # the latter on CUDA alone
NO_ACTIVATION = (-math.inf, math.inf)


def variants(op: str, device: str | None = None) -> list[VariantInfo]:
    """Every variant of an operator, whatever machine it needs; of one device or of all."""
    return [variant for variant in info().variants if variant.op == op and device in (None, variant.device)]


def float32_isa(isa: str) -> str:
    """The instruction set of the float32 kernels where this one is in use."""
    return isa.removesuffix("_bf16")


def numbers(case: Case) -> tuple[list[int], list[int], list[int], int]:
    """stride, padding, dilation and groups as the operators take them."""
    return list(case.stride), list(case.padding), list(case.dilation), case.groups


def covered_dtypes(variant: VariantInfo, case: Case, pool: Window = (0, 0, 0)) -> list[torch.dtype]:
    """The element types in which a variant takes a case, with this max pooling."""
    x, weight = [case.N, case.C, case.H, case.W], [case.K, case.C // case.groups, case.R, case.S]

    def covers(dtype: torch.dtype) -> bool:
        name = str(dtype).removeprefix("torch.")
        told = (x, name, "cpu"), (weight, name, "cpu")
        return bool(C.conv2d_covers(variant.name, *told, *numbers(case), pool))

    return [dtype for dtype in DTYPES if covers(dtype)]


def elementwise_dtypes(variant: VariantInfo) -> list[torch.dtype]:
    """The element types of bias_relu and batch_norm_relu in a variant."""
    if variant.device == "cuda":
        return list(DTYPES)
    return [torch.float32, torch.bfloat16, *([torch.float64] if variant.needs == "scalar" else [])]


def covered(op: str, cases: list[Case], device: str | None = None) -> Any:
    """Parametrise over (variant, case), without what a variant does not take; `-k cuda` finds those of a GPU."""
    pairs = [
        (variant, case) for variant in variants(op, device) for case in cases if covered_dtypes(variant, case)
    ]
    ids = [f"{variant.device}-{variant.name}-{case}" for variant, case in pairs]
    return pytest.mark.parametrize(("variant", "case"), pairs, ids=ids)
