"""Every CPU variant on tensors beside pages that nobody may touch: see sanitizer/tails.cpp."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels.cases import CASES

ROOT = Path(__file__).resolve().parents[2]
LINES = "\n".join(
    " ".join(map(str, (c.N, c.C, c.H, c.W, c.K, c.R, c.S, *c.stride, *c.padding, *c.dilation, c.groups)))
    for c in CASES
)


@pytest.fixture(scope="module")
def tails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the library that was built."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("tails") / "tails"
    source = ROOT / "tests" / "kernels" / "sanitizer" / "tails.cpp"
    library = ["-L", ROOT / "pyserve", "-lpyserve_core", f"-Wl,-rpath,{ROOT / 'pyserve'}"]
    subprocess.run([compiler, "-std=c++17", "-O1", source, *library, "-o", program], check=True)
    return program


def test_no_variant_touches_memory_beside_its_tensors(tails: Path) -> None:
    done = subprocess.run([tails], input=LINES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all clean\n")


def test_an_element_too_few_is_found(tails: Path) -> None:
    done = subprocess.run(
        [tails, "short"], input="1 5 6 7 3 3 3 1 1 1 1 1 1 1\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "touches memory beside its tensors" in done.stderr
