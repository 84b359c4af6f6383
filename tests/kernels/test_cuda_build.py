"""Gates on the compiled CUDA kernels, wherever nvcc is: architectures, spills, registers, symbols."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pyserve.kernels import info
from tests.kernels import cuda_toolkit
from tests.kernels.cuda_toolkit import KERNEL_FILES, LIBRARY, LOGS, ROOT, Resources
from tests.kernels.test_build import symbols

# kernel (see budget_name) → most registers a thread and most bytes of static shared memory
BUDGET: dict[str, dict[str, int]] = json.loads(
    (Path(__file__).parent / "cuda_budget.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def built() -> Path:
    """The CUDA library that set-up builds where it finds nvcc."""
    cuda_toolkit.nvcc()
    assert LIBRARY.is_file(), "nvcc is there, but set-up built no CUDA library"
    return LIBRARY


def check_resources(kernels: list[Resources]) -> None:
    """No spills, and nothing above the budget; every kernel has one."""
    for kernel in kernels:
        what = f"{kernel.kernel} for {kernel.architecture}"
        assert kernel.spill_bytes == 0, f"{what} spills {kernel.spill_bytes} bytes"
        assert kernel.stack_bytes == 0, (
            f"{what} has a stack of {kernel.stack_bytes} bytes: an array in local memory"
        )
        assert kernel.name in BUDGET, f"{kernel.name} is missing in cuda_budget.json"
        budget = BUDGET[kernel.name]
        assert kernel.registers <= budget["registers"], f"{what} takes {kernel.registers} registers"
        assert kernel.shared_bytes <= budget["shared_bytes"], f"{what} takes {kernel.shared_bytes} bytes"


def check_log(log: str) -> list[Resources]:
    """A compilation's report: no warnings, and the gates hold."""
    warnings = [line for line in log.splitlines() if "warning" in line.lower()]
    assert not warnings, warnings
    kernels = cuda_toolkit.resources(log)
    assert kernels
    check_resources(kernels)
    return kernels


@pytest.mark.parametrize("file", KERNEL_FILES, ids=lambda file: file.stem)
def test_the_kernels_keep_to_their_budget(built: Path, file: Path) -> None:
    """As set-up compiled them, for every architecture it was asked for."""
    kernels = check_log((LOGS / f"{file.stem}.o.log").read_text(encoding="utf-8"))
    architectures = {f"sm_{arch.removesuffix('+PTX')}" for arch in info().build["cuda_architectures"].split(";")}
    assert {kernel.architecture for kernel in kernels} == architectures


@pytest.mark.parametrize("file", KERNEL_FILES, ids=lambda file: file.stem)
def test_they_keep_to_it_on_sm_120(file: Path, tmp_path: Path) -> None:
    """Consumer Blackwell gets its code from PTX at run time; what ptxas makes of it is seen here."""
    command = [cuda_toolkit.nvcc(), "-std=c++17", "-O3", "-DNDEBUG", "-Xptxas", "-v", "-cubin", "-arch=sm_120"]
    result = subprocess.run(
        [*command, "-o", tmp_path / "kernels.cubin", file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    check_log(result.stderr)


def test_a_spill_is_noticed() -> None:
    log = (
        "ptxas info    : Compiling entry function '_ZN7pyserve4simt1kEv' for 'sm_80'\n"
        "    24 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 128 registers, used 1 barriers, 64 bytes smem, 576 bytes cmem[0]\n"
    )
    (kernel,) = cuda_toolkit.resources(log)
    assert kernel == Resources("simt::k", "sm_80", 128, 64, 24, 12)
    with pytest.raises(AssertionError, match="spills 12 bytes"):
        check_resources([kernel])


def test_the_library_has_machine_code_for_every_architecture(built: Path) -> None:
    architectures = {architecture for _, architecture in cuda_toolkit.machine_code()}
    assert architectures == {f"sm_{a.removesuffix('+PTX')}" for a in info().build["cuda_architectures"].split(";")}
    assert {"sm_80", "sm_90a"} <= architectures


def test_matrix_kernels_use_the_tensor_cores(built: Path) -> None:
    kernels = cuda_toolkit.machine_code()
    matrix_kernels = {key: code for key, code in kernels.items() if key[0].startswith(("mma::", "stem::"))}
    assert {key[0].split("::")[0] for key in matrix_kernels} == {"mma", "stem"}
    for key, code in matrix_kernels.items():
        assert "HMMA" in code, f"{key}: no tensor core instruction"
        assert "LDL" not in code, f"{key}: reads local memory"
        if key[0].startswith("mma::"):  # the other pads its pixels on the way
            assert "LDGSTS" in code, f"{key}: no asynchronous copy"


def test_budgets_are_of_kernels_that_exist(built: Path) -> None:
    names = {cuda_toolkit.budget_name(kernel) for kernel, _ in cuda_toolkit.machine_code()}
    assert set(BUDGET) == names


def test_the_operators_use_the_stable_abi_only(built: Path) -> None:
    """Symbols of torch's C++ ABI would tie the binary to one torch version."""
    lines = [line.split(" U ")[-1] for line in symbols(built, "-D", "--undefined-only")]
    assert "aoti_torch_get_current_cuda_stream" in lines
    assert not [line for line in lines if line.startswith(("c10::", "at::", "torch::", "caffe2::"))]


def test_it_needs_the_cuda_part_of_torch(built: Path) -> None:
    """By name: beside a CUDA torch the loader then finds that library's symbols."""
    told = subprocess.run(["readelf", "-d", built], capture_output=True, text=True, check=True).stdout
    assert "[libtorch_cuda.so]" in told


def test_kernel_files_know_no_torch() -> None:
    for path in [*KERNEL_FILES, *(ROOT / "csrc" / "cuda").glob("*.cuh"), *(ROOT / "csrc" / "cuda").glob("*.h")]:
        assert "torch/" not in path.read_text(encoding="utf-8"), path.name
