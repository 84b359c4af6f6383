"""What nvcc and the disassembler tell of the CUDA kernels: registers, spills, architectures, machine code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "pyserve" / "libpyserve_cuda.so"
LOGS = ROOT / "build" / "kernels" / "libpyserve_cuda"
KERNEL_FILES = sorted((ROOT / "csrc" / "cuda").glob("*_launch.cu"))


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel for one architecture."""

    kernel: str  # demangled, with its template arguments: "simt::product_kernel<simt::ForwardProduct<float> >"
    architecture: str  # "sm_80"
    registers: int
    shared_bytes: int  # static
    stack_bytes: int
    spill_bytes: int

    @property
    def name(self) -> str:
        """As the budget has it."""
        return budget_name(self.kernel)


def budget_name(kernel: str) -> str:
    """The kernel without its template arguments; float64, twice as wide in registers, is an entry of its own."""
    return kernel.split("<", maxsplit=1)[0] + ("<double>" if "double" in kernel else "")


def nvcc() -> str:
    """The CUDA compiler; skips where there is none, fails in CI."""
    folders = [f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ["PATH"], "/usr/local/cuda/bin"]
    return _needed("nvcc", os.pathsep.join(folders))


def _needed(tool: str, path: str) -> str:
    found = shutil.which(tool, path=path)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {tool}")
        pytest.skip(f"needs {tool}")
    return found


@cache
def demangled(symbol: str) -> str:
    """A kernel's C++ name without namespace, return type and parameters."""
    text = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    text = text.removeprefix("void ").replace("pyserve::", "")
    depth = 0
    for i, character in enumerate(text):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return text[:i]
    return text


def resources(log: str) -> list[Resources]:
    """Every kernel of a report by `ptxas -v`."""
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    found = []
    for symbol, architecture, stack, stores, loads, registers, rest in pattern.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        told = (int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads))
        found.append(Resources(demangled(symbol), architecture, *told))
    return found


@cache
def machine_code() -> dict[tuple[str, str], str]:
    """(kernel, architecture) → its SASS, of everything in the built library."""
    folders = [os.environ["PATH"], *map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))]
    path = os.pathsep.join([*folders, "/usr/local/cuda/bin"])
    cuobjdump, nvdisasm = _needed("cuobjdump", path), _needed("nvdisasm", path)
    environment = {**os.environ, "PATH": f"{Path(nvdisasm).parent}{os.pathsep}{os.environ['PATH']}"}
    text = subprocess.run(
        [cuobjdump, "-sass", LIBRARY], capture_output=True, text=True, check=True, env=environment
    ).stdout
    found = {}
    for part in re.split(r"^\s*Fatbin elf code:", text, flags=re.MULTILINE)[1:]:
        architecture = re.search(r"arch = (\w+)", part)
        assert architecture is not None
        for function in re.split(r"^\s*Function : ", part, flags=re.MULTILINE)[1:]:
            found[demangled(function.split()[0]), architecture[1]] = function
    return found
