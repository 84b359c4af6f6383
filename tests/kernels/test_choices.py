"""Which variant a problem takes, and why: the committed table, a machine's own, the list's order; the tuner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import TABLE_VARIABLE, conv2d, fuse, info, tune, use_table
from pyserve.kernels._extension import C
from pyserve.kernels.choices import Table, cpu_name, read_table, write_table

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "csrc" / "cpu" / "choices.inc"
ISAS = [isa for isa in C.isa_names() if isa in ("avx2", "avx512")]  # those with variants of their own in float32
needs_vectors = pytest.mark.skipif(not ISAS, reason="needs a processor with AVX2")


@pytest.fixture(autouse=True)
def _no_table() -> Iterator[None]:
    isa = C.isa_in_use()
    use_table(None)
    yield
    C.set_isa(isa)
    use_table(None)


def vector_isa() -> str:
    """Of the variants that float32 takes."""
    return C.isa_in_use().removesuffix("_bf16")


def explain(op: str, x: list[int], weight: list[int], stride: int = 1, groups: int = 1) -> tuple[str, str, str]:
    """Variant, why, class; float32, padded to keep the size."""
    told = ((sizes, "float32", "cpu") for sizes in (x, weight))
    found: tuple[str, str, str] = C.conv2d_explain(op, *told, [stride] * 2, [weight[2] // 2] * 2, [1, 1], groups)
    return found


def winograd_problem(positions: int = 64) -> tuple[str, list[int], list[int]]:
    return "conv2d", [1, 1024, positions, 1], [1024, 1024, 3, 3]  # more channels than any committed row has


def table(*rows: str) -> Table:
    return Table(cpu_name(), (C.isa_in_use(),), rows)


def row(positions: int, algorithm: str) -> str:
    isa = vector_isa()
    return f"{isa}, conv2d, f32, 3, 3, 1, 1, dense, 1024, 1024, {positions}, {algorithm}_{isa}"


@pytest.mark.parametrize("isa", ISAS)
def test_every_committed_row_is_taken(isa: str) -> None:
    C.set_isa(isa)
    rows = [r for r in read_table(COMMITTED, "committed").rows if r.startswith(f"{isa}, ") and ", f32, " in r]
    assert rows
    for text in rows:
        _, op, _, R, _, stride, _, grouping, channels, filters, positions, variant = text.split(", ")
        c, k, s = int(channels), int(filters), int(stride)
        groups = c if grouping == "depthwise" else 1
        found = explain(op, [1, c, int(positions) * s, 1], [k, c // groups, int(R), int(R)], s, groups)
        assert found == (f"{op}_{variant}", "table", text.rpartition(", ")[0])


def test_the_committed_table_tells_where_it_was_measured() -> None:
    committed = read_table(COMMITTED, "committed")
    assert committed.cpu
    assert {row.split(", ")[0] for row in committed.rows} <= set(committed.isas)
    classes = [row.rpartition(", ")[0] for row in committed.rows]
    assert len(classes) == len(set(classes))


@needs_vectors
def test_a_machine_table_goes_ahead_and_the_nearest_row_counts(tmp_path: Path) -> None:
    isa = vector_isa()
    assert explain(*winograd_problem())[:2] == (f"conv2d_winograd_{isa}", "list order")
    write_table(table(row(16, "winograd"), row(256, "direct")), tmp_path / "t.inc")
    use_table(tmp_path / "t.inc")
    assert info().table == str(tmp_path / "t.inc")
    for positions, algorithm in ((1, "winograd"), (32, "winograd"), (128, "direct"), (100_000, "direct")):
        found = explain(*winograd_problem(positions))
        assert found[:2] == (f"conv2d_{algorithm}_{isa}", "this machine's table")
    use_table(None)
    assert info().table == ""
    assert explain(*winograd_problem())[1] == "list order"


@needs_vectors
def test_a_row_of_a_variant_that_does_not_take_the_problem_is_passed_over(tmp_path: Path) -> None:
    write_table(table(row(64, "pointwise")), tmp_path / "t.inc")
    use_table(tmp_path / "t.inc")
    assert explain(*winograd_problem())[:2] == (f"conv2d_winograd_{vector_isa()}", "list order")


@needs_vectors
def test_reasons_without_a_table() -> None:
    only = explain("conv2d", [1, 8, 5, 5], [8, 8, 5, 5])
    assert only[:2] == (f"conv2d_direct_{vector_isa()}", "only candidate")
    C.prefer_variant("conv2d_direct_scalar")
    try:
        assert explain(*winograd_problem())[:2] == ("conv2d_direct_scalar", "asked for")
    finally:
        C.prefer_variant("")


@needs_vectors
def test_the_choice_does_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    try:
        found = set()
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.add(explain(*winograd_problem()))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@needs_vectors
def test_plans_made_before_a_table_are_made_anew(tmp_path: Path) -> None:
    isa = vector_isa()
    fused = fuse(nn.Sequential(nn.Conv2d(1024, 1024, 3, padding=1), nn.ReLU()).eval(), inference=True)
    x = torch.randn(1, 1024, 2, 2)

    def ran() -> str:
        C.reset_counters()
        with torch.no_grad():
            fused(x)
        return " ".join(info().calls)

    assert ran() == f"conv2d_winograd_{isa}"
    write_table(table(row(4, "direct")), tmp_path / "t.inc")
    use_table(tmp_path / "t.inc")
    assert ran() == f"conv2d_direct_{isa}"


@needs_vectors
def test_every_choice_is_told_with_why() -> None:
    C.reset_counters()  # so many choices are remembered, and no more
    conv2d(torch.zeros(1, 19, 23, 29), torch.zeros(7, 19, 5, 3))
    (told,) = [choice for choice in info().choices if "C 19 K 7 kernel 5×3 on 23×29" in choice.problem]
    assert (told.variant, told.why) == (f"conv2d_direct_{vector_isa()}", "only candidate")


@needs_vectors
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: replace(t, cpu="Abacus, family 1"), r"measured on Abacus, family 1', expected one for "),
        (lambda t: replace(t, isas=("sse2",)), r"measured on sse2', expected one for avx"),
        (
            lambda t: replace(t, rows=(row(4, "fastest"),)),
            r"which this build lacks\", expected a table for this",
        ),
        (lambda t: replace(t, rows=(row(4, "direct"), "avx2, conv2d, f32, 3")), "has fewer fields than twelve"),
        (lambda t: replace(t, rows=(row(4, "direct").replace("1024", "-1"),)), "'-1' where a size belongs"),
    ],
)
def test_tables_of_others_are_refused(change: object, sentence: str, tmp_path: Path) -> None:
    write_table(table(row(64, "direct")), tmp_path / "own.inc")
    use_table(tmp_path / "own.inc")
    write_table(change(table(row(64, "winograd"))), tmp_path / "other.inc")  # type: ignore[operator]
    with pytest.raises(InvalidArgumentError, match=sentence):
        use_table(tmp_path / "other.inc")
    assert explain(*winograd_problem())[:2] == (f"conv2d_direct_{vector_isa()}", "this machine's table")
    assert info().table == str(tmp_path / "own.inc")


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.inc"
    with pytest.raises(InvalidArgumentError, match="no such file or directory"):
        use_table(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="not text"):
        use_table(path)
    path.write_text("ROW(1, 2)\n")
    with pytest.raises(InvalidArgumentError, match="no table of kernel choices', expected a table of format 1"):
        use_table(path)
    path.write_text(table().text().replace("format 1", "format 2"))
    with pytest.raises(InvalidArgumentError, match="format 2', expected a table of format 1; `pyserve"):
        use_table(path)


def test_the_environment_names_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.inc"
    write_table(table(), path)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), TABLE_VARIABLE: str(path)}
    command = [sys.executable, "-c", "from pyserve.kernels import info; print(info().table)"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(path)
    path.write_text(table().text().replace(cpu_name(), "Abacus"))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert f"{TABLE_VARIABLE}: got '{path}: measured on Abacus', expected one for {cpu_name()}" in done.stderr


def test_tables_of_one_processor_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "t.inc"
    write_table(Table("A", ("avx2",), ("x, 1, a", "x, 2, a")), path)
    newer = Table("A", ("avx512",), ("x, 2, b", "x, 10, b"))
    merged = newer.merged(path)
    assert merged == Table("A", ("avx2", "avx512"), ("x, 1, a", "x, 2, b", "x, 10, b"))
    assert replace(newer, cpu="B").merged(path) == replace(newer, cpu="B")
    write_table(merged, path)
    assert read_table(path, "path") == merged


# ------------------------------------------------------------ the tuner


def test_only_problems_with_a_choice_are_measured_each_class_once() -> None:
    found = tune.problems()
    assert {p.op for p in found} == ({"conv2d", "conv2d_dgrad", "conv2d_wgrad"} if ISAS else set())
    assert all(len(p.candidates()) > 1 for p in found)
    assert len({p.problem_class() for p in found}) == len(found)


@needs_vectors
@pytest.mark.parametrize("op", ["conv2d", "conv2d_dgrad", "conv2d_wgrad"])
def test_the_tuner_measures_the_variants_it_says(op: str) -> None:
    problem = tune.Problem(op, "f32", tune.Layer(16, 16, 8), 1)
    before = info().calls
    variant, times = tune.fastest(problem, rounds=1)
    assert variant in times
    assert C.dispatch_state()[1] == -1  # nothing is preferred any more
    for name in problem.candidates():
        assert info().calls[name] > before.get(name, 0)
    C.load_choices([tune.row(problem, variant)])
    assert C.conv2d_explain(op, *problem.told())[:2] == (variant, "this machine's table")


@needs_vectors
def test_only_what_is_clearly_faster_displaces_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = tune.Problem("conv2d", "f32", tune.Layer(16, 16, 8), 1)
    first, second, *_ = problem.candidates()
    for seconds, expected in ((0.99, first), (0.8, second)):
        monkeypatch.setattr(tune, "_seconds", lambda name, _, s=seconds: s if name == second else 1.0)
        assert tune.fastest(problem)[0] == expected
