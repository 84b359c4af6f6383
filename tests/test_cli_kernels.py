"""`pyserve kernels`: what a server tells, and the tuner on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pyserve.kernels import tune
from pyserve.kernels._extension import C
from pyserve.kernels.choices import read_table
from pyserve.v1 import insight_pb2
from tests.cli_support import Run
from tests.client import fake_insight
from tests.client.fake import FakeServer
from tests.test_cli import fake, run

__all__ = ["fake", "run"]  # fixtures

ANSWER = insight_pb2.KernelsResponse(
    isa_found="avx2",
    isa_used="scalar",
    choices=[insight_pb2.KernelChoice(variant="conv2d_direct_avx2", problem="float32 C 3", why="list order")],
    threads=3,
    workspace=insight_pb2.KernelWorkspace(held_bytes=8 << 20, lent_bytes=2 << 20, given_back_bytes=64 << 20),
)


@pytest.fixture
def _few_problems(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tune, "LAYERS", [tune.Layer(16, 16, 8)])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_choices_threads_and_scratch_memory_are_shown(
    fake: FakeServer,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(fake_insight.ANSWERS, "Kernels", ANSWER)
    out = run("kernels").out
    assert "scalar (best found: avx2)" in out
    assert "8 MiB held, 2 MiB of these lent, 0 MiB at most, 64 MiB given back" in out
    assert "list order" in out
    assert "no call fell back to ATen" in out


@pytest.mark.skipif(len(C.isa_names()) == 1, reason="needs a processor with AVX2")
@pytest.mark.usefixtures("_few_problems")
def test_the_tuner_writes_a_table(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.inc"
    done = run("kernels", "tune", "--output", str(path))
    assert done.code == 0
    assert done.out.strip() == str(path)
    assert len(read_table(path, "path").rows) == len(tune.problems())
    assert [entry.name for entry in path.parent.iterdir()] == ["t.inc"]


@pytest.mark.skipif(len(C.isa_names()) == 1, reason="needs a processor with AVX2")
@pytest.mark.usefixtures("_few_problems")
def test_ctrl_c_leaves_a_table_as_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.inc"
    path.write_text("as it was")
    fastest, calls = tune.fastest, []

    def interrupted(problem: tune.Problem) -> tuple[str, dict[str, float]]:
        calls.append(problem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fastest(problem, rounds=1)

    monkeypatch.setattr(tune, "fastest", interrupted)
    done = run("kernels", "tune", "--output", str(path))
    assert done.code == 130
    assert f"stopped after 1 of {len(tune.problems())} problems; {path} is as it was" in " ".join(done.err.split())
    assert path.read_text() == "as it was"
