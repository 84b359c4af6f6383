"""Runs the CUDA kernels' sources on the CPU: built with g++ against the emulator, called by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels import reference
from tests.kernels.cases import Case
from tests.kernels.reference import Tensors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
EMULATOR = Path(__file__).resolve().parent / "emulator"
BUILD = ROOT / "build" / "emulator"
ORDERINGS = ("early", "late")
TILES = ("large", "medium", "small", "narrow")
_FLAGS = "-std=c++17 -O2 -fPIC -fvisibility=hidden -fno-strict-aliasing -U_FORTIFY_SOURCE -Wall -Wextra -Werror"
_FLAGS += " -Wno-unused-parameter -Wno-unknown-pragmas -Wno-maybe-uninitialized"
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2, torch.float16: 3}


class ViolationError(AssertionError):
    """A kernel broke a rule of the programming model."""


@dataclass(frozen=True)
class Patch:
    """A change to a kernel's source: `old`, which must be there exactly once, becomes `new`."""

    file: str  # under csrc/cuda/
    old: str
    new: str
    launch: str  # the <launch>_launch.cu that is compiled with the change; the others stay as they are


def build(patch: Patch | None = None) -> Emulator:
    """The kernels, with a patch or as they are; what was compiled before is not compiled again."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    BUILD.mkdir(parents=True, exist_ok=True)
    files = [*sorted(SOURCES.glob("cuda/*_launch.cu")), *sorted(EMULATOR.glob("*.cpp"))]
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = dict(zip(files, pool.map(lambda file: _compiled(file, SOURCES), files), strict=True))
    ordered = list(objects.values())
    if patch is not None:
        name = f"{patch.launch}_launch.cu"
        with tempfile.TemporaryDirectory() as folder:
            sources = _patched(Path(folder) / "csrc", patch)
            changed = _compiled(sources / "cuda" / name, sources)
        # First, so that of templates that several files have the changed one is taken.
        ordered = [changed, *(path for file, path in objects.items() if file.name != name)]
    library = BUILD / f"{_digest(*map(str, ordered))}.so"
    if not library.exists():
        _run_into(library, ["g++", "-shared", *map(str, ordered)])
    return Emulator(library)


def _patched(copy: Path, patch: Patch) -> Path:
    """A copy of the sources with the patch applied."""
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("cpu"))
    path = copy / "cuda" / patch.file
    text = path.read_text(encoding="utf-8")
    assert text.count(patch.old) == 1, f"{patch.file} has {text.count(patch.old)} times: {patch.old}"
    path.write_text(text.replace(patch.old, patch.new), encoding="utf-8")
    return copy


def _compiled(file: Path, sources: Path) -> Path:
    """The object of a file, named by a digest of what the preprocessor makes of it."""
    compiler = ["g++", *_FLAGS.split(), f"-I{EMULATOR}", f"-I{sources / 'cuda'}", "-x", "c++"]
    text = subprocess.run([*compiler, "-E", "-P", str(file)], capture_output=True, text=True, check=True).stdout
    target = BUILD / f"{_digest(_FLAGS, text)}.o"
    if not target.exists():
        _run_into(target, [*compiler, "-c", str(file)])
    return target


def _run_into(target: Path, command: list[str]) -> None:
    """Run a compiler; the file appears whole or not at all, also where two processes make it."""
    partial = target.with_suffix(f".{os.getpid()}")
    subprocess.run([*command, "-o", str(partial)], check=True)
    partial.rename(target)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


# ------------------------------------------------------------ the structs of csrc/*.h


class _Clamp(ctypes.Structure):
    _fields_ = [("lo", ctypes.c_double), ("hi", ctypes.c_double)]


class _Conv2dProblem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("N", "H", "W", "C", "K", "R", "S", "P", "Q")),
        *((f"{name}_{axis}", ctypes.c_int64) for name in ("stride", "pad", "dilation") for axis in "hw"),
        ("groups", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("tf32", ctypes.c_bool),
        ("clamp", _Clamp),
        ("kcrs", ctypes.c_bool),
        *((f"pool_{name}", ctypes.c_int64) for name in ("size", "stride", "pad")),
    ]


class _BiasReluProblem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        ("dtype", ctypes.c_int32),
        ("clamp", _Clamp),
    ]


class _BatchNormProblem(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("training", ctypes.c_bool),
        ("eps", ctypes.c_double),
        ("clamp", _Clamp),
    ]


class _Range(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("size_bytes", ctypes.c_int64), ("writable", ctypes.c_bool)]


def conv2d_problem(
    case: Case,
    dtype: torch.dtype,
    activation: str = "none",
    *,
    tf32: bool = False,
    pool: tuple[int, int, int] = (0, 0, 0),
) -> Any:
    """A case as the kernels are told it; `pool`: size, stride and padding of a max pooling."""
    P, Q = (
        (size + 2 * case.padding[i] - case.dilation[i] * (kernel - 1) - 1) // case.stride[i] + 1
        for i, (size, kernel) in enumerate(((case.H, case.R), (case.W, case.S)))
    )
    sizes = (case.N, case.H, case.W, case.C, case.K, case.R, case.S, P, Q)
    clamp = _Clamp(*reference.BOUNDS[activation])
    return _Conv2dProblem(
        *sizes, *case.stride, *case.padding, *case.dilation, case.groups, _DTYPES[dtype], tf32, clamp, False, *pool
    )


def bias_relu_problem(sizes: tuple[int, int, int], dtype: torch.dtype, activation: str) -> Any:
    """Dense values [outer, channels, inner] as the kernels are told them."""
    return _BiasReluProblem(*sizes, _DTYPES[dtype], _Clamp(*reference.BOUNDS[activation]))


def batch_norm_problem(x: Tensor, activation: str, *, training: bool, eps: float) -> Any:
    """x [rows, channels] as the kernels are told it."""
    clamp = _Clamp(*reference.BOUNDS[activation])
    return _BatchNormProblem(*x.shape, _DTYPES[x.dtype], training, eps, clamp)


class Emulator:
    """A compiled set of kernels."""

    def __init__(self, library: Path) -> None:
        kernels = ctypes.CDLL(str(library))
        self._emulate, self._blocks = kernels.emulate, kernels.emulated_blocks
        self._emulate.restype, self._blocks.restype = ctypes.c_char_p, ctypes.c_int64

    def run(
        self,
        variant: str,
        problem: Any,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        ordering: str,
        *,
        capability: int = 80,
        tile: str = "",
        sampled: bool = False,
        multiprocessors: int | None = None,
    ) -> int:
        """Run a variant. Inputs and outputs are dense, and in the order of the operator's argument struct.

        The device has so many multiprocessors that small tiles are chosen in one ordering, so few that large ones
        are in the other, unless `multiprocessors` are given; a tile may be asked for by name. `sampled`: only the
        first and the last block of each launch run.

        Returns:
            The number of blocks that ran.

        Raises:
            ViolationError: where the kernel broke a rule of the programming model.
        """
        tensors = [*inputs, *outputs]
        # A struct may have more members, which are null then.
        pointers = (ctypes.c_void_p * 16)(*(None if t is None else t.data_ptr() for t in tensors))
        ranges = [
            _Range(t.data_ptr(), t.numel() * t.element_size(), i >= len(inputs))
            for i, t in enumerate(tensors)
            if t is not None
        ]
        error = self._emulate(
            variant.encode(),
            ctypes.byref(problem),
            pointers,
            (_Range * len(ranges))(*ranges),
            len(ranges),
            ORDERINGS.index(ordering),
            capability,
            multiprocessors or (1 if ordering == "early" else 132),
            TILES.index(tile) if tile else -1,
            ctypes.c_bool(sampled),
        )
        if error is not None:
            raise ViolationError(error.decode())
        return int(self._blocks())

    def conv2d(self, variant: str, t: Tensors, activation: str, ordering: str, *, tf32: bool = False) -> Tensor:
        """clamp(conv(x, weight) + bias + residual), [N, K, P, Q]."""
        y = poisoned_like(nhwc(t.residual))
        problem = conv2d_problem(t.case, t.x.dtype, activation, tf32=tf32)
        self.run(variant, problem, [nhwc(t.x), nhwc(t.weight), t.bias, nhwc(t.residual)], [y], ordering)
        return y.permute(0, 3, 1, 2)

    def conv2d_pooled(
        self, t: Tensors, pool: tuple[int, int, int], activation: str, ordering: str, *, bias: bool = True
    ) -> Tensor:
        """Max pooling (size, stride, padding) of clamp(conv(x, weight) + bias), [N, K, P', Q']."""
        y = poisoned_like(nhwc(F.max_pool2d(t.residual, *pool)))
        problem = conv2d_problem(t.case, t.x.dtype, activation, tf32=True, pool=pool)
        inputs = [nhwc(t.x), nhwc(t.weight), t.bias if bias else None, None]
        self.run("conv2d_stem_sm80", problem, inputs, [y], ordering)
        return y.permute(0, 3, 1, 2)

    def conv2d_statistics(
        self, variant: str, t: Tensors, ordering: str, *, tf32: bool = False, tile: str = "", bias: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """conv(x, weight) + bias [N, P, Q, K], and the mean and variance [K] of its channels."""
        y = poisoned_like(nhwc(t.residual))
        mean, var = (torch.full((t.case.K,), float("nan")) for _ in range(2))
        problem = conv2d_problem(t.case, t.x.dtype, tf32=tf32)
        inputs = [nhwc(t.x), nhwc(t.weight), t.bias if bias else None, None]
        self.run(variant, problem, inputs, [y, None, mean, var], ordering, tile=tile)
        return y, mean, var

    def conv2d_dgrad(
        self,
        variant: str,
        t: Tensors,
        ordering: str,
        *,
        tf32: bool = False,
        y: Tensor | None = None,
        activation: str = "none",
    ) -> Tensor:
        """The gradient of x, [N, C, H, W], through the activation whose output y is, where it is given."""
        dx = poisoned_like(nhwc(t.x))
        problem = conv2d_problem(t.case, t.x.dtype, activation, tf32=tf32)
        self.run(variant, problem, [nhwc(t.grad), nhwc(t.weight), None if y is None else nhwc(y)], [dx], ordering)
        return dx.permute(0, 3, 1, 2)

    def conv2d_wgrad(
        self,
        variant: str,
        t: Tensors,
        ordering: str,
        *,
        tf32: bool = False,
        y: Tensor | None = None,
        activation: str = "none",
        dbias: Tensor | None = None,
    ) -> Tensor:
        """The gradient of weight, [K, C/groups, R, S], likewise; that of the bias goes to `dbias` [K]."""
        dw = poisoned_like(nhwc(t.weight))
        problem = conv2d_problem(t.case, t.x.dtype, activation, tf32=tf32)
        self.run(
            variant, problem, [nhwc(t.grad), nhwc(t.x), None if y is None else nhwc(y)], [dw, dbias], ordering
        )
        return dw.permute(0, 3, 1, 2)


def nhwc(t: Tensor) -> Tensor:
    """Channels-last as a dense tensor of its own."""
    return t.permute(0, 2, 3, 1).contiguous()


def poisoned_like(t: Tensor) -> Tensor:
    """NaN everywhere: what a kernel leaves unwritten shows."""
    return torch.full_like(t, float("nan"))
