"""What the kernels are, which of them ran, and what went to ATen instead."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyserve.kernels._extension import CUDA_LOADED, C
from pyserve.kernels.choices import table_in_use


@dataclass(frozen=True)
class VariantInfo:
    """One kernel variant."""

    name: str  # operator, algorithm, instruction set: "conv2d_direct_avx512"
    op: str
    algorithm: str
    needs: str  # instruction set: scalar, avx2, avx512, avx512_bf16, or cuda
    device: str  # cpu or cuda
    available: bool  # this machine can run it, and the ISA in use allows it
    calls: int


@dataclass(frozen=True)
class WorkspaceInfo:
    """Scratch memory of the CPU kernels; unused it goes back after some seconds, or by `release_workspace`."""

    held_bytes: int
    lent_bytes: int  # of these, to calls that are running
    most_held_bytes: int  # ever
    given_back_bytes: int  # to the system, so far


@dataclass(frozen=True)
class ChoiceInfo:
    """Which variant a class of problems takes, and why."""

    variant: str
    problem: str  # "float32 C 64 K 64 kernel 3×3 on 56×56 stride 1,1 …"; batches of all sizes
    why: str  # "table", "this machine's table", "list order", "only candidate" or "asked for"


@dataclass(frozen=True)
class KernelInfo:
    """The state of the kernels in this process."""

    build: dict[str, str]  # compiler, flags, torch_least, cuda_architectures
    isa_found: str
    isa_in_use: str  # isa_found, capped by the environment variable PYSERVE_CPU_ISA
    cuda_loaded: bool
    variants: tuple[VariantInfo, ...]  # best first within an operator
    choices: tuple[ChoiceInfo, ...]  # of every class of problems so far
    table: str  # the file of this machine's measured choices that is in use; "": the committed ones alone
    threads: int  # that a call may use
    chain_calls: int  # parts of networks run as one call, for prediction
    workspace: WorkspaceInfo
    fallbacks: dict[str, int]  # what our kernels do not cover and ATen did: "conv2d: float16 on cpu" → calls

    @property
    def calls(self) -> dict[str, int]:
        """Calls per variant name, without those never called."""
        return {variant.name: variant.calls for variant in self.variants if variant.calls}


def info() -> KernelInfo:
    """Build facts, ISA, variants with their calls so far, and fallbacks, of this process."""
    isa_names: list[str] = C.isa_names()
    usable = isa_names[: isa_names.index(C.isa_in_use()) + 1]
    return KernelInfo(
        build=C.build_facts(),
        isa_found=C.isa_found(),
        isa_in_use=C.isa_in_use(),
        cuda_loaded=CUDA_LOADED,
        variants=tuple(_variant(row, usable) for row in C.variants()),
        choices=tuple(ChoiceInfo(*row) for row in C.choices()),
        table=table_in_use(),
        threads=torch.get_num_threads(),
        chain_calls=C.chain_calls(),
        workspace=WorkspaceInfo(*C.workspace()),
        fallbacks=C.fallbacks(),
    )


def release_workspace() -> None:
    """Give the scratch memory that no running call uses back to the system; the next call takes it anew."""
    C.release_workspace()


def _variant(row: dict[str, str | int], usable: list[str]) -> VariantInfo:
    least = int(row["least_capability"])
    available = _cuda_capability() >= least if row["device"] == "cuda" else row["needs"] in usable
    return VariantInfo(
        name=str(row["name"]),
        op=str(row["op"]),
        algorithm=str(row["algorithm"]),
        needs=str(row["needs"]),
        device=str(row["device"]),
        available=available,
        calls=int(row["calls"]),
    )


def _cuda_capability() -> int:
    """Compute capability × 10 of the current GPU; 0 without one or without the CUDA operators."""
    if not (CUDA_LOADED and torch.cuda.is_available()):
        return 0
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor
