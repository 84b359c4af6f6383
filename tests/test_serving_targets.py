"""The verdicts of benchmarks/serving.py on its own rows."""

from __future__ import annotations

import runpy
from typing import Any

from tests.conftest import ROOT

verdicts = runpy.run_path(str(ROOT / "benchmarks" / "serving_targets.py"))["verdicts"]


def row(server: str, case: str, per_s: float, p50_ms: float = 10.0, p99_ms: float = 20.0, **more: float) -> Any:
    return {"server": server, "case": case, "per_s": per_s, "p50_ms": p50_ms, "p99_ms": p99_ms, **more}


def rows(**changed: Any) -> list[Any]:
    """Where all is met, just."""
    return [
        row("no server, float32", "bare loop, batch 1", 90.0, p50_ms=9.0),
        row("no server, float32", "bare loop, batch 8", 100.0),
        row("pyserve float32", "closed, 1", 80.0, p50_ms=10.5),
        row("pyserve float32", "closed, 32", 92.0, p99_ms=100.0) | changed,
        row("pyserve float32", "closed, 128", 92.0, health_p99_ms=49.0),
        row("KServe, PyTorch", "closed, 32", 30.6, p99_ms=101.0),
        row("MLServer, PyTorch", "closed, 32", 20.0, p99_ms=500.0),
        row("KServe, ONNX Runtime", "closed, 32", 20.0, p99_ms=400.0),
        row("MLServer, ONNX Runtime", "closed, 32", 51.0, p99_ms=500.0),
    ]


def test_all_met() -> None:
    found = verdicts(rows())
    assert [line["verdict"] for line in found] == ["met"] * 6
    assert [line["measured"] for line in found] == ["0.92", "3.007", "1.804", "0.9901", "1.5", "49"]


def test_what_is_missed_is_said() -> None:
    slow = [line["verdict"] for line in verdicts(rows(per_s=91.0))]
    assert slow == ["missed", "missed", "missed", "met", "met", "met"]
    late = [line["verdict"] for line in verdicts(rows(p99_ms=102.0))]
    assert late == ["met", "met", "met", "missed", "met", "met"]


def test_what_is_not_measured_is_no_success() -> None:
    alone = [r for r in rows() if r["server"].startswith("pyserve")]
    assert [line["verdict"] for line in verdicts(alone)] == [*["not measured"] * 5, "met"]
    assert verdicts([]) == []
