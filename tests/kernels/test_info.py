"""What the kernels tell of themselves: build facts, ISA, variants, choices; and the cap by environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyserve.kernels import conv2d, info
from pyserve.kernels._extension import C
from tests.kernels.support import float32_isa

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter at the repository's root."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)


def test_build_facts() -> None:
    facts = info().build
    assert set(facts) == {"compiler", "flags", "torch_least", "cuda_architectures"}
    assert all(facts.values())


def test_every_operator_has_a_variant_that_runs_everywhere() -> None:
    found = info()
    for op in ("conv2d", "conv2d_dgrad", "conv2d_wgrad", "bias_relu", "bias_relu_backward"):
        on_cpu = [variant for variant in found.variants if variant.op == op and variant.device == "cpu"]
        assert on_cpu[-1].needs == "scalar"
        assert on_cpu[-1].available
    assert len({variant.name for variant in found.variants}) == len(found.variants)


def test_a_plain_convolution_runs_on_the_best_variant(device: str) -> None:
    for size, algorithm in ((3, "winograd"), (5, "direct")):
        name = f"conv2d_{algorithm}_{float32_isa(info().isa_in_use)}" if device == "cpu" else "conv2d_simt_cuda"
        before = info().calls.get(name, 0)
        conv2d(torch.zeros(1, 16, 6, 6, device=device), torch.zeros(8, 16, size, size, device=device))
        assert info().calls.get(name, 0) == before + 1


@pytest.mark.parametrize("isa", C.isa_names())
def test_the_environment_caps_the_isa(isa: str) -> None:
    code = (
        "import json, torch; from pyserve.kernels import conv2d, info\n"
        "conv2d(torch.zeros(1, 8, 5, 5), torch.zeros(8, 8, 5, 5), activation='relu')\n"
        "found = info(); print(json.dumps([found.isa_in_use, found.calls]))"
    )
    result = run_python(code, PYSERVE_CPU_ISA=isa)
    assert result.returncode == 0, result.stderr
    in_use, calls = json.loads(result.stdout)
    assert in_use == isa
    assert calls == {f"conv2d_direct_{float32_isa(isa)}": 1}


def test_an_unknown_isa_in_the_environment_is_told() -> None:
    result = run_python("from pyserve.kernels import info; info()", PYSERVE_CPU_ISA="sse9")
    assert result.returncode != 0
    assert "PYSERVE_CPU_ISA: got 'sse9', expected scalar, avx2, avx512 or avx512_bf16" in result.stderr


def test_a_choice_is_logged_once_per_problem_class() -> None:
    """In a process of its own: one that has seen thousands of classes tells of no more."""
    program = """
import logging, sys, torch
from pyserve.kernels import conv2d
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s")
for batch in (1, 2):
    conv2d(torch.zeros(batch, 13, 17, 19), torch.zeros(11, 13, 3, 3))
"""
    lines = run_python(program).stdout.splitlines()
    told = [line for line in lines if "C 13 K 11 kernel 3×3 on 17×19" in line]
    assert len(told) == 1
    assert told[0].startswith("pyserve.kernels conv2d_")


def test_an_unbuilt_extension_is_told_with_the_command_that_builds_it() -> None:
    result = run_python("import sys; sys.modules['pyserve._C'] = None; import pyserve.kernels")
    assert "ImportError: pyserve's extension is not built" in result.stderr
    assert "pip install --no-build-isolation --no-deps -e ." in result.stderr
