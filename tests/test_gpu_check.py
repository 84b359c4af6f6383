"""scripts/gpu-check where there is no GPU: its stages, what it says of them, and which tests it selects."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.kernels.cases import CASES
from tests.kernels.support import covered, variants

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu-check"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_check", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # where its dataclasses look for their annotations
    loader.exec_module(module)
    return module


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_every_stage_is_documented(gpu_check: ModuleType) -> None:
    told = call("--help").stdout
    listed = re.findall(r"^    ([a-z-]+)  +\S", told, re.MULTILINE)
    assert listed == [*gpu_check.STAGES, *gpu_check.MORE]


def test_a_dry_run_skips_what_needs_a_gpu(tmp_path: Path) -> None:
    result = call("--dry-run", "--stages", "environment,tests-gpu,sanitizer", "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))["results"]
    assert [(stage["stage"], stage["verdict"]) for stage in told] == [
        ("environment", "passed"),
        ("tests-gpu", "skipped"),
        ("sanitizer", "skipped"),
    ]
    assert (tmp_path / "environment.log").is_file()


def test_an_unknown_stage_is_refused() -> None:
    result = call("--stages", "build,tests-tpu")
    assert result.returncode == 2
    assert "--stages: got 'tests-tpu', expected of environment, build, " in result.stderr


def test_the_folder_above_selects_no_tests(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests are chosen by a word in their names; the checkout may lie in a folder of that name."""
    root = tmp_path / "cuda" / "project"
    (root / "tests").mkdir(parents=True)
    (root / "tests" / "test_words.py").write_text("def test_plain(): pass\ndef test_on_cuda(): pass\n")
    monkeypatch.setattr(gpu_check, "ROOT", root)
    context = gpu_check.Context(tmp_path, 60, use_gpu=False)
    for word in ("cuda", "not cuda"):
        assert context.pytest("words", ["tests", "-k", word], 60).summary == "1 passed, 0 failed, 0 skipped"


def test_every_cuda_variant_is_among_the_tests_of_the_gpu() -> None:
    for op in ("conv2d", "conv2d_dgrad", "conv2d_wgrad"):
        mark = covered(op, CASES).mark
        named = {
            variant.name
            for (variant, _), name in zip(mark.args[1], mark.kwargs["ids"], strict=True)
            if "cuda" in name
        }
        assert named == {v.name for v in variants(op, "cuda") if v.algorithm != "stem"}  # see test_pooled
