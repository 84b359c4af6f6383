"""What every benchmark writes: machine, versions, commit and rows, as JSON and as a Markdown table."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions, to see that it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return parser


def machine() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory_gib), "system": platform.system()}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the named packages."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def commit() -> str:
    """The commit measured; "+" marks a tree with changes that are not committed, "?" one without a history."""
    if not (ROOT / ".git").exists():
        return "?"
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def write(
    path: Path | None,
    benchmark: str,
    rows: Sequence[dict[str, Any]],
    summary: str,
    packages: Sequence[str],
    gpu: dict[str, Any] | None = None,
    *,
    details: dict[str, Any] | None = None,
) -> None:
    """Write one result file.

    Args:
        path: where; None writes nothing.
        benchmark: the script's name.
        rows: one flat dictionary a case.
        summary: one sentence.
        packages: whose versions matter here.
        gpu: what is to be told of the GPU.
        details: further entries of the file, such as curves.
    """
    if path is None:
        return
    result = {
        "benchmark": benchmark,
        "commit": commit(),
        "machine": machine() | (gpu or {}),
        "versions": versions(*packages),
        "rows": list(rows),
        "summary": summary,
        **(details or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(f"{summary}\n\n{table(rows)}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; the first row names the columns."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """A number with the digits one reads, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
