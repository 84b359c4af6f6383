"""Properties of the built libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ROOT / "build" / "kernels" / "libpyserve_core"


def symbols(path: Path, *options: str) -> list[str]:
    """Lines of `nm`; skips where binutils or the file are missing."""
    if shutil.which("nm") is None or not path.exists():
        pytest.skip(f"needs nm and {path}")
    return subprocess.run(
        ["nm", "-C", *options, path], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_kernel_files_share_no_code_with_other_files() -> None:
    """A weak symbol of an AVX-512 object could become everybody's copy of that function."""
    objects = sorted(OBJECTS.glob("*_avx*.o"))
    if not objects:
        pytest.skip(f"needs the objects under {OBJECTS}")
    for path in objects:
        weak = [line for line in symbols(path, "--defined-only") if line.split()[1] in "WVu"]
        assert not weak, f"{path.name}: {weak}"


def test_the_core_knows_no_torch() -> None:
    lines = symbols(ROOT / "pyserve" / "libpyserve_core.so", "-D", "--undefined-only")
    assert not [line for line in lines if "torch" in line or "c10" in line]


def test_the_operators_use_the_stable_abi_only() -> None:
    """Symbols of torch's C++ ABI would tie the binary to one torch version."""
    lines = symbols(ROOT / "pyserve" / "libpyserve_cpu.so", "-D", "--undefined-only")
    assert [line for line in lines if "aoti_torch_" in line]
    assert not [
        line for line in lines if "c10::" in line or "at::" in line.replace("::at::", "at::").split(" U ")[-1][:4]
    ]


def test_setup_stays_small() -> None:
    assert len((ROOT / "setup.py").read_text(encoding="utf-8").splitlines()) <= 100
